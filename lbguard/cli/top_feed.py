"""Data of `lbguard top`: a poller of the service.

`Feed` asks the service in a thread of its own, so that a hung or restarting service stops neither the countdowns nor
the keyboard.
"""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lbguard.api.client import ClientError, GuardClient, ServiceNotRunning, Watched
from lbguard.core.status import GuardStatus
from lbguard.printable import printable, printable_values

CALL_TIMEOUT_S = 5.0
DECISIONS_KEPT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Latest data received from the service.

    Attributes:
        status: its state; None: it was never reached.
        decisions: the last ones, oldest first.
        received_at: when that came, seconds of the reader's monotonic clock.
        trouble: why nothing newer came; empty: the service answers.
    """

    status: GuardStatus | None = None
    decisions: tuple[Watched, ...] = ()
    received_at: float = 0.0
    trouble: str = ""


class Feed:
    """Poller of the service, in a thread of its own; use it as a context manager.

    Args:
        socket: its socket.
        interval_s: seconds between two questions.
    """

    def __init__(self, socket: Path, interval_s: float) -> None:
        self._snapshot = Snapshot()  # replaced as a whole, so that another thread may read it
        self._socket = socket
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._fault: BaseException | None = None
        # A call that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def latest(self) -> Snapshot:
        """Return the latest snapshot; raise the error that ended the thread, if any."""
        if self._fault is not None:
            raise self._fault
        return self._snapshot

    def _run(self) -> None:
        try:
            self._ask_for_ever()
        except BaseException as error:
            self._fault = error  # raised where it can be seen, not printed over the view

    def _ask_for_ever(self) -> None:
        while not self._ended.is_set():
            try:
                # A new connection after each failure: gRPC's own backoff would be slower to notice a new service.
                with GuardClient(self._socket, timeout_s=CALL_TIMEOUT_S) as client:
                    while not self._ended.is_set():
                        self._snapshot = ask(client)
                        self._ended.wait(self._interval_s)
            except ServiceNotRunning:
                self._snapshot = replace(self._snapshot, trouble="not running, waiting")
            except ClientError as error:
                self._snapshot = replace(self._snapshot, trouble=f"{printable(str(error))}; trying again")
            self._ended.wait(self._interval_s)


def ask(client: GuardClient) -> Snapshot:
    """Return the state and the last decisions.

    Raises:
        ClientError: the service does not answer.
    """
    decisions = tuple(client.watch(DECISIONS_KEPT, follow=False))
    status, decisions = printable_values((client.status(), decisions))
    return Snapshot(status=status, decisions=decisions, received_at=time.monotonic())
