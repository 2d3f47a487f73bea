"""Process of `lbguard run`: instance lock, log, event loop, exit status."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from lbguard.distributor.base import Distributor, DistributorError
from lbguard.errors import EXIT_FAILED, StartError
from lbguard.kernel.process import InstanceLock, InstanceRunning
from lbguard.service.build import make_distributor
from lbguard.service.daemon import Daemon
from lbguard.settings.model import Loaded, Settings
from lbguard.telemetry.log import fields, setup_logging

_log = logging.getLogger("lbguard.service.daemon")

_SWITCH_INTERVAL_S = 0.0001


async def _serve(
    settings: Settings, make: Callable[[Settings], Distributor], loaded: Loaded | None
) -> tuple[int, bool]:
    """Run the service; return the exit status, and whether one of its threads hangs."""
    problems: list[Exception] = []
    daemon: Daemon | None = None
    try:
        daemon = Daemon(settings, make, loaded)
        await daemon.run()
    except* Exception as group:
        problems += group.exceptions
    for problem in problems:
        starting = daemon is None or not daemon.started
        if isinstance(problem, StartError) or (starting and isinstance(problem, DistributorError | OSError)):
            _log.critical("cannot start", extra=fields(reason=str(problem)))
        else:
            _log.critical("a part of the service failed", exc_info=problem)
    return (EXIT_FAILED if problems else 0), daemon is not None and daemon.stuck


def run(
    settings: Settings,
    make: Callable[[Settings], Distributor] = make_distributor,
    loaded: Loaded | None = None,
) -> int:
    """Run the service until a signal ends it; return the exit status (0 stopped, 1 failed).

    `loaded`: the settings with their sources, so that their file is followed.
    """
    logging_ = setup_logging(settings.log.format, settings.log.level)
    status, stuck = EXIT_FAILED, False
    # The loop releases the interpreter lock with every system call. While another thread computes (a scrape), it would
    # get it back only after 5 ms each time.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        with InstanceLock():
            status, stuck = asyncio.run(_serve(settings, make, loaded))
    except InstanceRunning as error:
        _log.critical("cannot start", extra=fields(reason=str(error)))
    finally:
        logging_.close()
    if stuck:
        # The interpreter would wait for the hanging thread.
        os._exit(status)
    return status
