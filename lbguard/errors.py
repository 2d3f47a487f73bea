"""The base of what keeps the service from starting, apart from the modules that raise it: those are loaded late."""


class StartError(Exception):
    """The service cannot start; the text names the setting and what to do."""
