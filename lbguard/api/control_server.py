"""gRPC service for operators: drain, hold, withdraw and release targets. It is served on the unix socket only.

The core decides (`core/manual.py`). This module finds the targets that a request means, checks its fields, and puts a
refusal into words.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NoReturn

import grpc

from lbguard.api.commands import ALLOWED_KEY, FIELD_KEY, Control
from lbguard.api.convert.states import FROM_MANUAL, state_to_proto
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.targets import TargetUnclear, find_target, shown
from lbguard.api.verdicts.convert import InvalidField
from lbguard.core import manual
from lbguard.core.effects import OverrideAnswered
from lbguard.core.events import OverrideRequested
from lbguard.core.model import ManualAction, TargetKey, TargetState
from lbguard.core.status import GuardStatus, TargetStatus
from lbguard.settings.decisions import ControlSettings
from lbguard.telemetry.sentences import span

REASON_MAX, WHO_MAX, TARGETS_MAX = 200, 64, 256
_NAMES_SHOWN = 8


class ControlService(pb_grpc.ControlServiceServicer):
    """Takes the commands of operators."""

    def __init__(
        self, status: Callable[[], Awaitable[GuardStatus]], control: Control, settings: ControlSettings
    ) -> None:
        self._status = status
        self._control = control
        self._settings = settings

    async def Override(  # noqa: N802 (the name is the protocol's)
        self, request: pb.OverrideRequest, context: grpc.aio.ServicerContext[pb.OverrideRequest, pb.OverrideResponse]
    ) -> pb.OverrideResponse:
        """Carry a command out, or refuse it."""
        try:
            action, duration_s = check_request(request, self._settings)
            status = await self._status()
            keys = select_targets(request, action, status)
        except InvalidField as error:
            # A client of the command line names its flag in place of the field.
            field = ((FIELD_KEY, error.path), (ALLOWED_KEY, error.allowed))
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error), field)
        except TargetUnclear as error:
            code = grpc.StatusCode.INVALID_ARGUMENT if error.found else grpc.StatusCode.NOT_FOUND
            await _abort(context, code, str(error))
        outcome = await self._control.request(
            OverrideRequested(
                action=action,
                targets=keys,
                duration_s=duration_s,
                who=request.who,
                reason=request.reason,
                force=request.force,
            )
        )
        answer = outcome.answer
        if answer.refused:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, refusal(answer, action, keys, status))
        changed = set(answer.changed)
        return pb.OverrideResponse(
            targets=[
                pb.OverriddenTarget(
                    stream=key.stream,
                    identifier=key.identifier,
                    state=pb.TARGET_STATE_UNSPECIFIED if state is None else state_to_proto(state),
                    changed=key in changed,
                )
                for key, state in ((key, self._control.state(key)) for key in keys)
            ],
            duration_s=duration_s,
            not_remembered=outcome.not_remembered,
        )


async def _abort(
    context: grpc.aio.ServicerContext[pb.OverrideRequest, pb.OverrideResponse],
    code: grpc.StatusCode,
    text: str,
    metadata: tuple[tuple[str, str], ...] = (),
) -> NoReturn:
    await context.abort(code, text, metadata)
    raise AssertionError("abort raises")


def check_request(request: pb.OverrideRequest, settings: ControlSettings) -> tuple[ManualAction, float]:
    """Return the action of a request and the time to its end, in seconds (0 with RELEASE).

    Raises:
        InvalidField: a field is wrong.
    """
    action = FROM_MANUAL.get(request.action)
    if action is None:
        raise InvalidField("action", request.action, ", ".join(map(str, ManualAction)))
    for name, text, longest in (("reason", request.reason, REASON_MAX), ("who", request.who, WHO_MAX)):
        if len(text) > longest:
            raise InvalidField(name, text, f"at most {longest} characters")
    release = action is ManualAction.RELEASE
    if request.all and not release:
        raise InvalidField("all", True, "only with release")
    if len(request.targets) > TARGETS_MAX:
        raise InvalidField("targets", len(request.targets), f"at most {TARGETS_MAX}; name streams or links instead")
    if not (request.targets or request.streams or request.links or request.all):
        raise InvalidField("targets", [], "one target, stream or link at least")
    duration_s = request.duration_s
    if release:
        if duration_s:
            raise InvalidField("duration_s", duration_s, "0 with release")
        return action, 0.0
    if not 0 <= duration_s < math.inf:
        raise InvalidField("duration_s", duration_s, "a number of seconds, 0 for control.duration")
    if duration_s > settings.max_duration:
        raise InvalidField("duration_s", duration_s, f"at most {span(settings.max_duration)} (control.max_duration)")
    return action, duration_s or settings.duration


def select_targets(request: pb.OverrideRequest, action: ManualAction, status: GuardStatus) -> tuple[TargetKey, ...]:
    """Return the targets that a request means, each once.

    Targets of streams and links that the source no longer lists are left out: they are on their way out.

    Raises:
        TargetUnclear: a text names none or several targets; or there is no such stream or link, or nothing in it.
    """
    found = [find_target(text, status.targets) for text in request.targets]
    for name in request.streams:
        if all(stream.name != name for stream in status.streams):
            known = _names(stream.name for stream in status.streams)
            raise TargetUnclear(f"no stream {shown(name)}; streams: {known}", 0)
        found += _keys((t for t in status.targets if t.stream == name), f"stream {shown(name)} has no targets")
    for name in request.links:
        behind = [t for t in status.targets if any(path.ifname == name for path in t.paths)]
        known = _names({path.ifname for t in status.targets for path in t.paths if path.ifname})
        found += _keys(behind, f"no target is reached through link {shown(name)}; links to targets: {known}")
    if request.all:
        found += [_key(target) for target in status.targets if target.override is not None]
    if action is ManualAction.RELEASE and not request.targets:
        overridden = {_key(target) for target in status.targets if target.override is not None}
        found = [key for key in found if key in overridden]
    return tuple(dict.fromkeys(found))


def _keys(targets: Iterable[TargetStatus], otherwise: str) -> list[TargetKey]:
    keys = [_key(target) for target in targets if not target.unlisted]
    if not keys:
        raise TargetUnclear(otherwise, 0)
    return keys


def _key(target: TargetStatus) -> TargetKey:
    return TargetKey(target.stream, target.identifier)


def _names(names: Iterable[str]) -> str:
    known = sorted(names)
    more = ", ..." if len(known) > _NAMES_SHOWN else ""
    return (", ".join(known[:_NAMES_SHOWN]) + more) or "none"


def refusal(answer: OverrideAnswered, action: ManualAction, keys: Sequence[TargetKey], status: GuardStatus) -> str:
    """Return a refusal of the core in words: reason, and what to do."""
    concerns = _names(answer.concerns)
    match answer.refused:
        case manual.WOULD_EMPTY:
            left = "; ".join(_left(name, set(keys), status) for name in answer.concerns[:_NAMES_SHOWN])
            return (
                f"{action} would leave no active target for new connections ({left}); leave one target out, wait until"
                " another is active, or repeat the command with --force"
            )
        case manual.NOT_CARRIED_OUT:
            return (
                "lbguard carries out no decision in this mode (observe or companion), so nothing would change; steer"
                " the load balancer itself, or run lbguard with mode=enforce"
            )
        case manual.NEEDS_AFFINITY:
            return (
                "a drain needs flow affinity, and it is off: the target would get new connections; set"
                " affinity.mode=incident, or use withdraw, which resets its connections"
            )
        case manual.UNKNOWN:
            return f"no longer listed: {concerns}; `lbguard status` shows the present targets"
        case manual.UNLISTED:
            return (
                f"the source no longer lists {concerns}, which is removed when its drain ends; leave it out of the"
                " command"
            )
        case manual.NOT_READY:
            return f"the table of {concerns} was not read yet; repeat the command when `lbguard health` says ready"
    return f"refused: {answer.refused} {concerns}"


def _left(stream: str, taken: set[TargetKey], status: GuardStatus) -> str:
    """Return what would be left of a stream: the number of its other targets in each state."""
    others = Counter(t.state for t in status.targets if t.stream == stream and _key(t) not in taken)
    counts = ", ".join(f"{others[state]} {state}" for state in TargetState if others[state])
    return f"{stream}: left {counts or 'no target'}"
