"""Colours and style that our HTML pages share: light, dark and on paper.

The colours of states and of marks differ in lightness as well as in hue, so that they stay apart for people who see
fewer hues: after the palette of Okabe and Ito, "Color Universal Design" (2008), moved apart in lightness.
"""

LIGHT = {
    "bg": "#fbfbfa",
    "fg": "#1d2327",
    "soft": "#5c666d",
    "line": "#d9dcde",
    "card": "#ffffff",
    "link": "#0b5cad",
    "ok": "#00825a",
    "held": "#f0b400",
    "frozen": "#7cc4ee",
    "out": "#c8400a",
    "pending": "#cfd3d5",
    "draining": "#1b4f9c",
    "answers": "#6f8fa6",
    "wait": "#9b4fa5",
    "stalled": "#3b3f42",
    "back": "#e6ece8",
}
"""Colours on a light screen and on paper, by the name of their CSS variable."""

DARK = LIGHT | {
    "bg": "#15191c",
    "fg": "#e4e8ea",
    "soft": "#9aa5ac",
    "line": "#333a3f",
    "card": "#1c2226",
    "link": "#6aa6e6",
    "ok": "#23a57c",
    "held": "#f5c542",
    "frozen": "#a2dcff",
    "out": "#ea5a28",
    "pending": "#4a5359",
    "draining": "#4a63d6",
    "answers": "#8aa9bf",
    "wait": "#b873c8",
    "stalled": "#f2f4f5",
    "back": "#303b41",
}
"""Colours on a dark screen."""

STATES = ("ok", "held", "frozen", "out", "pending", "draining")
"""Colours that stand beside each other as states of links and targets."""

MARKS = ("held", "wait", "out", "stalled", "back")
"""Colours that stand beside each other as marks of connections."""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


BASE_STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 24px 20px 60px; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, sans-serif; }}
a {{ color: var(--link); }} h1 {{ font-size: 26px; margin: 0 0 4px; }} .soft {{ color: var(--soft); }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; }}
.scroll {{ overflow-x: auto; }} pre {{ white-space: pre-wrap; }}
@page {{ size: A4 landscape; margin: 10mm; }}
@media print {{ :root {{ color-scheme: light; print-color-adjust: exact; -webkit-print-color-adjust: exact;
  --bg: #ffffff; }} body {{ max-width: none; padding: 0; font-size: 12px; }} .scroll, .card {{ overflow: visible; }}
  svg {{ min-width: 0; max-height: 132mm; }} .card, tr, li {{ break-inside: avoid; }}
  h2, h3, h2 + p {{ break-after: avoid; }} }}
"""
"""Style of every page; a page adds its own after it."""
