"""The blocking client of the running service, for the command line."""

import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import grpc
from grpc.experimental import ChannelOptions

from lbguard.api.commands import ALLOWED_KEY, FIELD_KEY
from lbguard.api.convert.decisions import decision_from_proto
from lbguard.api.convert.states import TO_MANUAL, state_from_proto
from lbguard.api.convert.status import status_from_proto
from lbguard.api.convert.targets import target_from_proto
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.core.model import Decision, ManualAction, TargetKey, TargetState
from lbguard.core.status import GuardStatus, TargetStatus
from lbguard.errors import EXIT_REFUSED, CommandError
from lbguard.settings.difference import Difference
from lbguard.settings.notation import unix_target

CALL_TIMEOUT_S = 10.0
_PIECE_BYTES = 4096
"""Content of one message with a file. The server's limit of a message is for verdicts, and a file may be larger."""
_ANSWER_BYTES_MAX = 256 * 2**20


class ClientError(CommandError):
    """The service is unreachable or did not answer; the text says what to do."""


class ServiceNotRunning(ClientError):  # noqa: N818 (it names the state)
    """The service is not running: nothing listens on its socket."""


class FieldRefused(ClientError):  # noqa: N818 (it names the state)
    """The service refuses a field of a request. `allowed` says in words which values it takes."""

    def __init__(self, text: str, field: str, allowed: str) -> None:
        super().__init__(text)
        self.field = field
        self.allowed = allowed


class FileRefused(CommandError):  # noqa: N818 (it names the state)
    """The service would refuse a settings file; `lines` has the reasons."""

    exit_status = EXIT_REFUSED

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self._problems = tuple(problems)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the problems."""
        return self._problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One target explained. `target` is None when the source no longer lists it; `decisions` are oldest first."""

    key: TargetKey
    target: TargetStatus | None
    now: float
    decisions: tuple[tuple[Decision, float], ...]
    story: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Command of an operator about targets, streams and links, by name. `duration_s` 0: the service's default."""

    action: ManualAction
    targets: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    all: bool = False
    duration_s: float = 0.0
    reason: str = ""
    who: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overridden:
    """A target of a command. `state`: the present one, None when it is gone. `changed`: there was something to do."""

    key: TargetKey
    state: TargetState | None
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A command that was carried out. `not_remembered`: why a restart would forget it; empty: it would not."""

    targets: tuple[Overridden, ...]
    duration_s: float
    not_remembered: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A decision with wall time, and how many before it were lost because this reader was too slow."""

    decision: Decision
    wall_time: float
    lost: int


class GuardClient:
    """Talks to the service on a unix socket; use it as a context manager.

    Every method raises ClientError (ServiceNotRunning when nothing listens on the socket).
    """

    def __init__(self, path: Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            unix_target(path),
            options=[
                ("grpc.max_receive_message_length", _ANSWER_BYTES_MAX),
                # Otherwise a stream whose server ends at that moment may wait forever, even with a deadline.
                (ChannelOptions.SingleThreadedUnaryStream, 1),
            ],
        )
        self._stub = pb_grpc.GuardServiceStub(self._channel)
        self._control = pb_grpc.ControlServiceStub(self._channel)

    def __enter__(self) -> Self:
        _check_socket(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def status(self) -> GuardStatus:
        """Return the whole state."""
        try:
            response = self._stub.GetStatus(pb.GetStatusRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            self._fail(error)
        return status_from_proto(response.status)

    def explain(self, target: str, history: int = 0) -> Explanation:
        """Explain the target that `target` means: `stream/identifier`, or an identifier or IP that only one has."""
        try:
            request = pb.ExplainTargetRequest(target=target, history=history)
            response = self._stub.ExplainTarget(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            self._fail(error)
        return Explanation(
            key=TargetKey(response.stream, response.identifier),
            target=target_from_proto(response.target) if response.HasField("target") else None,
            now=response.now_s,
            decisions=tuple(decision_from_proto(decision) for decision in response.decisions),
            story=response.story,
        )

    def override(self, command: Command) -> Carried:
        """Give a command of an operator."""
        request = pb.OverrideRequest(
            action=TO_MANUAL[command.action],
            targets=command.targets,
            streams=command.streams,
            links=command.links,
            all=command.all,
            duration_s=command.duration_s,
            reason=command.reason,
            who=command.who,
            force=command.force,
        )
        try:
            response = self._control.Override(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ClientError(
                    "the service takes no commands: control.enabled is false, or it is an older version; set"
                    " control.enabled=true and restart it"
                ) from None
            self._refused_field(error)
            self._fail(error)
        return Carried(
            targets=tuple(
                Overridden(
                    key=TargetKey(each.stream, each.identifier),
                    state=state_from_proto(each.state) if each.state else None,
                    changed=each.changed,
                )
                for each in response.targets
            ),
            duration_s=response.duration_s,
            not_remembered=response.not_remembered,
        )

    def compare_settings(self, content: bytes, name: str) -> tuple[Difference, ...]:
        """Return what a settings file would change if it were the service's.

        Raises:
            FileRefused: the service would refuse it.
        """
        pieces = range(0, max(1, len(content)), _PIECE_BYTES)
        requests = (pb.CompareSettingsRequest(name=name, content=content[at : at + _PIECE_BYTES]) for at in pieces)
        try:
            response = pb_grpc.SettingsServiceStub(self._channel).CompareSettings(requests, timeout=self._timeout_s)
        except grpc.RpcError as error:
            self._fail(error)
        if response.problems:
            raise FileRefused(response.problems)
        return tuple(
            Difference(name=each.name, running=each.running, wanted=each.wanted, live=each.live)
            for each in response.differences
        )

    def watch(self, history: int, *, follow: bool) -> Iterator[Watched]:
        """Yield the last decisions, oldest first, and then (with `follow`) each new one until the service ends."""
        request = pb.WatchDecisionsRequest(history=history, follow=follow)
        try:
            for response in self._stub.WatchDecisions(request, timeout=None if follow else self._timeout_s):
                decision, wall_time = decision_from_proto(response.decision)
                yield Watched(decision=decision, wall_time=wall_time, lost=response.lost)
        except grpc.RpcError as error:
            self._fail(error)

    def _refused_field(self, error: grpc.RpcError) -> None:
        """Raise FieldRefused when an error names the field of the request that is refused."""
        said = {each.key: str(each.value) for each in error.trailing_metadata() or ()}
        if FIELD_KEY in said:
            raise FieldRefused(error.details() or "", said[FIELD_KEY], said.get(ALLOWED_KEY, "")) from None

    def _fail(self, error: grpc.RpcError) -> NoReturn:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNAVAILABLE:
            raise ServiceNotRunning(f"socket {self._path}: the service ended or does not answer") from None
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ClientError(f"socket {self._path}: no answer within {self._timeout_s:g} s") from None
        raise ClientError(details or f"socket {self._path}: {code.name}") from None


def _check_socket(path: Path) -> None:
    """Raise at once, with the reason, when the service cannot be reached; gRPC itself would retry for seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CALL_TIMEOUT_S)
        try:
            code = probe.connect_ex(str(path))
        except OSError:
            code = errno.ENAMETOOLONG
    if code in {errno.ENOENT, errno.ECONNREFUSED}:
        why = "no socket at" if code == errno.ENOENT else "nothing listens on"
        raise ServiceNotRunning(
            f"lbguard is not running ({why} {path}); start it with `lbguard run`, or name its socket with --socket or"
            " LBGUARD_SOCKET"
        )
    if code == errno.EACCES:
        raise ClientError(f"{path}: permission denied; run as root or as a member of the socket's group")
    if code:
        raise ClientError(f"{path} cannot be reached: {errno.errorcode.get(code, code)}; is it lbguard's socket?")
