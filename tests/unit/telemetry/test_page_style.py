"""The colours of our pages stay apart, also for people who see fewer hues, and on paper."""

import itertools

import pytest

from lbguard.telemetry.page_style import BASE_STYLE, DARK, LIGHT, MARKS, STATES

Matrix = tuple[tuple[float, float, float], ...]

# Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009), the
# matrices of the full deficiency, for linear RGB.
SIGHTS: dict[str, Matrix] = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
APART = 20.0
"""Distance in CIE L*a*b* (1976) between colours side by side; about 2.3 can just be noticed."""


def linear(colour: str) -> list[float]:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]


def seen(colour: str, sight: Matrix) -> tuple[float, float, float]:
    """Return the L*a*b* of a colour (sRGB, white D65) as it is seen."""
    red, green, blue = (
        min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear(colour), strict=True)))) for row in sight
    )
    x, y, z = (
        ((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047),
        (0.2126 * red + 0.7152 * green + 0.0722 * blue),
        ((0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883),
    )
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("beside", [STATES, MARKS], ids=["states", "marks"])
def test_colours_side_by_side_differ_for_everyone(colours: dict[str, str], sight: str, beside: tuple[str, ...]) -> None:
    for one, other in itertools.combinations(beside, 2):
        first, second = (seen(colours[name], SIGHTS[sight]) for name in (one, other))
        distance = sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
        assert distance >= APART, (one, other, distance)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["fg", "soft", "link"])
def test_text_can_be_read(colours: dict[str, str], text: str) -> None:
    for ground in ("bg", "card"):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_dark_colours_are_for_screens_only() -> None:
    assert "@media screen and (prefers-color-scheme: dark)" in BASE_STYLE
    assert BASE_STYLE.index("@media print") > BASE_STYLE.index("prefers-color-scheme: dark")
    assert "print-color-adjust: exact" in BASE_STYLE, "a browser leaves out backgrounds on paper otherwise"
