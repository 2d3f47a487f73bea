"""`lbguard check-config --diff`: what a settings file would change in the running service."""

from collections.abc import Sequence
from pathlib import Path

from lbguard.api.client import ClientError, GuardClient
from lbguard.errors import EXIT_FAILED, EXIT_REFUSED, CommandError
from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.difference import Difference
from lbguard.settings.sources import MAX_BYTES
from lbguard.telemetry.output import print_json, print_text

EXIT_DIFFERS = EXIT_FAILED
"""As diff(1) has it: 0 the same, 1 differences, 2 trouble."""


class DiffError(CommandError):
    """The comparison cannot be made."""

    exit_status = EXIT_REFUSED


def show_difference(config: Path, socket: Path, *, as_json: bool) -> int:
    """Compare a file with the settings of the running service, and print what differs. Return the exit status.

    Raises:
        DiffError: the file cannot be read, or the service does not answer.
        CommandError: the service would refuse the file.
    """
    try:
        content = read_regular_file(config, MAX_BYTES)
    except FileError as error:
        raise DiffError(f"{config}: {error}") from None
    try:
        with GuardClient(socket) as client:
            found = client.compare_settings(content, str(config.absolute()))
    except ClientError as error:
        raise DiffError(str(error)) from None
    if as_json:
        print_json([{"name": d.name, "running": d.running, "wanted": d.wanted, "live": d.live} for d in found])
    else:
        print_text("\n".join(_lines(found)))
    return EXIT_DIFFERS if found else 0


def _lines(found: Sequence[Difference]) -> list[str]:
    if not found:
        return ["no difference: the running settings are those of the file, the environment and the flags"]
    rows = [_columns(each) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    waiting = sum(not each.live for each in found)
    if waiting:
        lines.append(f"{waiting} of {len(found)} need a restart of lbguard")
    return lines


def _columns(each: Difference) -> tuple[str, str, str]:
    change = f"{each.running or 'unset'} -> {each.wanted or 'unset'}"
    return each.name, change, "live" if each.live else "restart"
