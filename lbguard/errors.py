"""Exit statuses of commands, and the base of the errors that end one."""

EXIT_FAILED = 1
"""The command could not do it: no service, a refused right, a part that failed."""
EXIT_REFUSED = 2
"""The input is refused: the command line, a setting, a recording."""
EXIT_INTERRUPTED = 130
"""Ended by SIGINT, as shells report it."""


class CommandError(Exception):
    """An error whose text is for people. When a command ends by it, its exit status is `exit_status`."""

    exit_status = EXIT_FAILED

    @property
    def lines(self) -> tuple[str, ...]:
        """Return what is shown of it, one problem a line."""
        return (str(self),)


class StartError(CommandError):
    """The service cannot start; the text names the setting and what to do."""
