"""Names of targets in requests. Pure."""

from collections.abc import Sequence

from lbguard.core.addr import format_ip, parse_ip
from lbguard.core.model import TargetKey
from lbguard.core.status import TargetStatus

_NAMES_SHOWN = 5
_TEXT_SHOWN = 100
_DIGITS_MAX = 10


class TargetUnclear(Exception):  # noqa: N818 (it names the answer)
    """No target, or several, are meant by a text; `found` holds how many."""

    def __init__(self, text: str, found: int) -> None:
        super().__init__(text)
        self.found = found


def find_target(text: str, targets: Sequence[TargetStatus]) -> TargetKey:
    """Find the target that a text names.

    Args:
        text: `stream/identifier`, or an identifier or IP address that only one target has.
        targets: the known targets.

    Raises:
        TargetUnclear: none or several are meant; the text says which.
    """
    stream, slash, number = text.rpartition("/")
    identifier = identifier_of(number)
    if slash and identifier is not None and ":" not in stream and "." not in stream[:1]:
        key = TargetKey(stream, identifier)
        if any((target.stream, target.identifier) == key for target in targets):
            return key
    if not slash and identifier is not None:
        found = [target for target in targets if target.identifier == identifier]
    else:
        try:
            ip = format_ip(parse_ip(text))
        except ValueError:
            hint = "write stream/identifier, an identifier or an IP"
            raise TargetUnclear(f"no target {shown(text)}; {hint}", 0) from None
        found = [target for target in targets if any(path.ip == ip for path in target.paths)]
    return only(text, [TargetKey(target.stream, target.identifier) for target in found])


def only(text: str, keys: Sequence[TargetKey]) -> TargetKey:
    """Return the only target of a name.

    Raises:
        TargetUnclear: there is none, or there are several.
    """
    if len(keys) == 1:
        return keys[0]
    if not keys:
        raise TargetUnclear(f"no target {shown(text)}", 0)
    names = ", ".join(map(str, keys[:_NAMES_SHOWN])) + (", ..." if len(keys) > _NAMES_SHOWN else "")
    raise TargetUnclear(f"{shown(text)} is the name of {len(keys)} targets: {names}", len(keys))


def identifier_of(text: str) -> int | None:
    """Read an identifier; what has more digits than any is none, and no work is put into it."""
    return int(text) if len(text) <= _DIGITS_MAX and text.isascii() and text.isdigit() else None


def shown(text: str) -> str:
    """Quote a name from a request, shortened to the size limit of a status."""
    return repr(text) if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]!r}..."
