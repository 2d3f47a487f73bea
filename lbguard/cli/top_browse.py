"""Browsing in `lbguard top`: scroll position, filter and help, changed by keys. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lbguard.cli.status_words import TROUBLE_FIRST, condition, then
from lbguard.core.status import TargetStatus

ESC = "\x1b"
"""The character that begins an escape sequence; alone it is the key Escape."""
ESCAPE = "escape"
ENTER = "enter"
ERASE = "erase"
_FILTER_MAX = 60
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
"""One key: an escape sequence of a terminal (ECMA-48 CSI, or SS3 for cursor keys), or one character."""
_INCOMPLETE = re.compile(r"\x1b(?:\[[0-9;]*|O)?\Z")
_KEYS = {
    **dict.fromkeys(("\x1b[A", "\x1bOA", "k"), "up"),
    **dict.fromkeys(("\x1b[B", "\x1bOB", "j"), "down"),
    **dict.fromkeys(("\x1b[5~", "b"), "page up"),
    **dict.fromkeys(("\x1b[6~", " "), "page down"),
    **dict.fromkeys(("\x1b[H", "\x1bOH", "\x1b[1~", "g"), "home"),
    **dict.fromkeys(("\x1b[F", "\x1bOF", "\x1b[4~", "G"), "end"),
}
_CONTROL = {"\x1b": ESCAPE, "\r": ENTER, "\n": ENTER, "\x7f": ERASE, "\x08": ERASE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Browse:
    """State of browsing.

    Attributes:
        first: number of matching targets above the screen.
        words: the filter: a target is shown if it has every word.
        typing: the filter is being typed.
        help: the help is shown instead of the state.
        left: the view is to be left.
    """

    first: int = 0
    words: str = ""
    typing: bool = False
    help: bool = False
    left: bool = False


def complete(text: str) -> tuple[str, str]:
    """Split what a terminal sent into the complete keys and the start of an escape sequence at its end."""
    cut = _INCOMPLETE.search(text)
    end = len(text) if cut is None else cut.start()
    return text[:end], text[end:]


def keys_of(text: str) -> list[str]:
    """Split what a terminal sent into keys: characters, escape sequences, and names of control characters."""
    return [_CONTROL.get(key, key) for key in _SEQUENCE.findall(text)]


def pressed(browse: Browse, key: str, *, total: int, page: int) -> Browse:
    """Return the state after a key.

    Args:
        browse: the state before.
        key: one of `keys_of`.
        total: number of targets that match the filter.
        page: number of targets on the screen.
    """
    if browse.typing:
        return _typed(browse, key)
    if key in {"q", "Q"}:
        return replace(browse, left=True)
    if browse.help or key in {"?", "h"}:
        return replace(browse, help=not browse.help)
    if key == "/":
        return replace(browse, typing=True)
    if key == ESCAPE:
        return Browse()
    last = max(0, total - page)
    # What is on the screen counts: targets that left meanwhile may have moved it.
    at = min(browse.first, last)
    moves = {"up": at - 1, "down": at + 1, "page up": at - page, "page down": at + page, "home": 0, "end": last}
    move = _KEYS.get(key)
    return browse if move is None else replace(browse, first=min(max(0, moves[move]), last))


def _typed(browse: Browse, key: str) -> Browse:
    if key == ENTER:
        return replace(browse, typing=False)
    if key == ESCAPE:
        return Browse()
    words = browse.words
    if key == ERASE:
        words = words[:-1]
    elif len(key) == 1 and key.isprintable():
        words = (words + key)[:_FILTER_MAX]
    return replace(browse, words=words, first=0)


def matching(targets: Sequence[TargetStatus], words: str) -> list[TargetStatus]:
    """Return the targets that have every word, the worst state first."""
    wanted = words.casefold().split()
    found = [target for target in targets if not wanted or all(word in _text(target) for word in wanted)]
    return sorted(found, key=by_trouble)


def _text(target: TargetStatus) -> str:
    """Return what the filter searches of a target."""
    paths = (f"{path.ip} {condition(path)} {path.ifname} {path.mac}" for path in target.paths)
    name = f"{target.stream}/{target.identifier}"
    given = target.override
    by_hand = "" if given is None else f"{given.action} by hand {given.who} {given.reason} "
    return f"{name} {by_hand}{target.state} {target.cause} {then(target)} {' '.join(paths)}".casefold()


def by_trouble(target: TargetStatus) -> tuple[int, float, str, int]:
    """Return a key that sorts the worst state first, and within a state the nearest deadline."""
    deadline = float("inf") if target.deadline is None else target.deadline
    return TROUBLE_FIRST.index(target.state), deadline, target.stream, target.identifier
