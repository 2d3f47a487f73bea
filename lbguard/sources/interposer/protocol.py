"""Line protocol between the program `deploy/meridio/nfqlb` and lbguard: one line of words per message. Pure.

A request is `1 ID COMMAND WORD...`: the version, the name of the FIFO that waits for the answer (a UUID), and the
arguments as nfqlb got them. A missed call is `1 COMMAND WORD...`. An answer is `1 done` (the call was carried out: exit
with 0), `1 pass` (run the real program) or `1 fail TEXT` (exit with 1).

The arguments are those that the load balancers of Meridio and Meridio-2 give::

    init --ownfw=0 --shm=NAME --M=SLOTS --N=TARGETS
    activate --index=I --shm=NAME MARK
    deactivate --index=I --shm=NAME
    delete --shm=NAME

In Meridio, NAME is `tshm-` and the stream's name, and I is the identifier less 1. In Meridio-2, NAME is the name of the
DistributionGroup, which is the stream, and I is the identifier.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from lbguard.core.model import MAX_MARK, MAX_TARGETS
from lbguard.sources.flavour import Flavour, flavour_of, stream_of

VERSION = "1"
LINE_MAX = 512
"""Longer lines are refused. The program sends shorter ones, and a pipe writes as much atomically."""

REQUEST_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Name of a request and of the FIFO of its answer: a UUID."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


class ProtocolError(Exception):
    """A line does not follow the protocol."""


class CallError(Exception):
    """A call is not one of the load balancer's: the real program handles it. `request_id`: who waits for it, if any."""

    def __init__(self, reason: str, request_id: str = "") -> None:
        super().__init__(reason)
        self.request_id = request_id


class Command(StrEnum):
    """The commands of the protocol."""

    INIT = "init"
    ACTIVATE = "activate"
    DEACTIVATE = "deactivate"
    DELETE = "delete"


_OPTIONS = {
    Command.INIT: frozenset({"ownfw", "shm", "M", "N"}),
    Command.ACTIVATE: frozenset({"index", "shm"}),
    Command.DEACTIVATE: frozenset({"index", "shm"}),
    Command.DELETE: frozenset({"shm"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of nfqlb. `max_targets` is init's, `identifier` activate's and deactivate's, `mark` activate's."""

    command: Command
    stream: str
    flavour: Flavour = Flavour.MERIDIO
    max_targets: int = 0
    identifier: int = 0
    mark: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call whose caller waits for an answer at the FIFO of this name."""

    id: str
    call: Call


class Verdict(StrEnum):
    """Outcome that an answer reports."""

    DONE = "done"
    PASS = "pass"
    FAIL = "fail"


def parse_request(line: bytes, wanted: Flavour | None = None) -> Request:
    """Read a request. `wanted`: the load balancer that makes the calls; None: their names show it.

    Raises:
        ProtocolError: it is not a request; no answer is possible.
        CallError: the call is not one of the load balancer's; `request_id` is set.
    """
    words = _words(line)
    if len(words) < 3 or REQUEST_ID.fullmatch(words[1]) is None:
        raise ProtocolError("no request")
    try:
        return Request(id=words[1], call=parse_call(words[2:], wanted))
    except CallError as error:
        raise CallError(str(error), words[1]) from None


def parse_missed(line: bytes, wanted: Flavour | None = None) -> Call:
    """Read a line about a call that was missed; see `parse_request`.

    Raises:
        ProtocolError: it is not such a line.
        CallError: the call is not one of the load balancer's.
    """
    words = _words(line)
    if len(words) < 2:
        raise ProtocolError("no call")
    return parse_call(words[1:], wanted)


def parse_call(words: list[str], wanted: Flavour | None = None) -> Call:
    """Read the arguments of nfqlb, of which the first is the command; see `parse_request`.

    Raises:
        CallError: they are not those of a call of the load balancer.
    """
    try:
        command = Command(words[0])
    except ValueError:
        raise CallError("command") from None
    options: dict[str, str] = {}
    operands: list[str] = []
    for word in words[1:]:
        if not word.startswith("-"):
            operands.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not equals or name in options:
            raise CallError("options")
        options[name] = value
    if options.keys() != _OPTIONS[command] or len(operands) != (command is Command.ACTIVATE):
        raise CallError("options")
    flavour = flavour_of(options["shm"], wanted)
    stream = stream_of(options["shm"], flavour)
    if stream is None:
        raise CallError("name")
    index = _number(options["index"], MAX_TARGETS - 1) if "index" in options else 0
    call = Call(
        command=command,
        stream=stream,
        flavour=flavour,
        max_targets=_number(options["N"], MAX_TARGETS) if command is Command.INIT else 0,
        identifier=index + flavour.first_identifier if "index" in options else 0,
        mark=_number(operands[0], MAX_MARK) if operands else 0,
    )
    if command is Command.INIT and call.max_targets < 1:
        raise CallError("number")
    return call


def format_answer(verdict: Verdict, text: str = "") -> bytes:
    """Return an answer; the text of a failure becomes one line of printable ASCII."""
    words = f"{VERSION} {verdict}"
    if verdict is Verdict.FAIL:
        words += " " + re.sub(r"[^!-~]+", " ", text)[: LINE_MAX - 16]
    return words.encode() + b"\n"


def _words(line: bytes) -> list[str]:
    if len(line) > LINE_MAX:
        raise ProtocolError("too long")
    try:
        words = line.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProtocolError("not ASCII") from None
    if words[0] != VERSION:
        raise ProtocolError("version")
    return words


def _number(word: str, high: int) -> int:
    if _NUMBER.fullmatch(word) is None or int(word) > high:
        raise CallError("number")
    return int(word)
