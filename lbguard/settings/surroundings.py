"""Groups of settings for other systems: sources `kernel`, `interposer`, `nsp`; the mesh and its manager's events."""

import itertools
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.core.model import DEFAULT_OFFSET, MAX_MARK, NAME_PATTERN
from lbguard.settings.fields import (
    ACROSS,
    GROUP,
    Duration,
    FilePath,
    OptionalDuration,
    OptionalPath,
    Patterns,
    PeerPattern,
    SpiffeAddress,
    checked,
    number,
    ratio,
    seconds,
    split,
)
from lbguard.settings.notation import DIAL_EXAMPLES, parse_dial_address
from lbguard.settings.probe import LEASE_MAX_S

RANGE_EXAMPLE = "stream-a=5001-5100"


class MarkRange(NamedTuple):
    """The marks of a stream: its first identifier has `first`."""

    name: str
    first: int
    last: int


def parse_range(text: str) -> MarkRange:
    """Read `NAME=FIRST-LAST`.

    Raises:
        ValueError: the text is not a range of marks.
    """
    name, _, marks = text.strip().partition("=")
    first, dash, last = marks.partition("-")
    if NAME_PATTERN.fullmatch(name) is None or not dash or not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"not a range of marks, such as {RANGE_EXAMPLE}")
    if not 1 <= int(first) <= int(last) <= MAX_MARK:
        raise ValueError(f"the marks of a range ascend from 1 to {MAX_MARK}, such as {RANGE_EXAMPLE}")
    return MarkRange(name, int(first), int(last))


Ranges = Annotated[tuple[Annotated[str, checked(parse_range)], ...], BeforeValidator(split)]


class KernelSourceSettings(BaseModel):
    """Targets from the load balancer's own rules and routes (source kernel)."""

    model_config = GROUP
    streams: Ranges = Field(
        default=(),
        description="Marks of each stream; a target with any other mark belongs to the stream `kernel`, with its mark"
        " as the identifier.",
        json_schema_extra={"unit": "list", "allowed": f"NAME=FIRST-LAST between commas, such as {RANGE_EXAMPLE}"},
    )
    flavour: Literal["meridio", "meridio-2"] = Field(
        default="meridio",
        description="The load balancer. meridio: the first mark of a stream is identifier 1, and its memory is named"
        " tshm-STREAM. meridio-2: the first mark is identifier 0, and the memory has the stream's name.",
    )
    keep: Duration = seconds(
        600.0,
        "A target is kept this long after the load balancer removed its rules while its path was broken.",
        high=86400.0,
    )

    @model_validator(mode="after")
    def _apart(self) -> "KernelSourceSettings":
        ranges = sorted(self.ranges, key=lambda each: each.first)
        for one, other in itertools.pairwise(ranges):
            if other.first <= one.last:
                raise PydanticCustomError(
                    ACROSS,
                    "two streams share marks",
                    {
                        "setting": "kernel_source.streams",
                        "value": f"{one.name} and {other.name}",
                        "allowed": "ranges that do not overlap",
                    },
                )
        if len({each.name for each in ranges}) < len(ranges):
            raise PydanticCustomError(
                ACROSS,
                "a stream is named twice",
                {"setting": "kernel_source.streams", "value": ",".join(self.streams), "allowed": "one range a stream"},
            )
        return self

    @property
    def ranges(self) -> tuple[MarkRange, ...]:
        """The ranges, in the given order."""
        return tuple(parse_range(text) for text in self.streams)


class InterposerSettings(BaseModel):
    """Streams and targets from the calls of nfqlb that an unmodified load balancer makes (source interposer)."""

    model_config = GROUP
    directory: FilePath = Field(
        default=Path("/run/lbguard/interposer"),
        description="The directory shared with the program nfqlb in the load balancer's container (LBGUARD_NFQLB_DIR).",
    )
    flavour: Literal["auto", "meridio", "meridio-2"] = Field(
        default="auto",
        description="The load balancer that makes the calls. auto: a memory named tshm-STREAM is Meridio's, any other"
        " Meridio-2's.",
    )
    answer_timeout: Duration = seconds(
        0.15,
        "The longest time until an activate is answered, with success also where the target is admitted later.",
        low=0.02,
        high=1,
    )
    recent_loss: Duration = seconds(
        1.0,
        "A deactivate by Meridio counts as a failed verification when the path was broken within this time.",
        high=60,
    )
    confirm_timeout: Duration = seconds(
        15.0,
        "A target that a failed verification deactivated is removed if it is not activated again within this"
        " time after the repair of its path; the load balancer tries every 10 s.",
        low=1,
        high=3600,
    )


class ReadinessSettings(BaseModel):
    """Readiness files for the router of Meridio-2, in place of those of its load balancer."""

    model_config = GROUP
    directory: OptionalPath = Field(
        default=None,
        description="Directory for files lb-ready-STREAM, for the router (its MERIDIO_READINESS_DIR)."
        " A file exists while the load balancer's own does and the stream is available. Unset: no files.",
    )
    balancer: FilePath = Field(
        default=Path("/var/run/meridio"),
        description="Directory of the load balancer's own files (MERIDIO_READINESS_DIR of its container).",
    )

    @model_validator(mode="after")
    def _two_directories(self) -> "ReadinessSettings":
        if self.directory == self.balancer:
            raise PydanticCustomError(
                ACROSS,
                "the load balancer removes every file of its directory when it starts",
                {"setting": "readiness.directory", "value": str(self.directory), "allowed": "a directory of its own"},
            )
        return self


ADDRESS_EXAMPLES = "nsp-service:7778, [fd00::1]:7778, unix:///PATH"

NspAddress = Annotated[str, checked(parse_dial_address)]


class NspSettings(BaseModel):
    """Streams and targets from Meridio's registry (source nsp). Without certificates the connection is plaintext."""

    model_config = GROUP
    address: NspAddress = Field(
        default="nsp-service:7778",
        description="Address of the registry.",
        json_schema_extra={"unit": "address", "allowed": ADDRESS_EXAMPLES},
    )
    trench: str = Field(
        default="",
        description="Name of the trench; required with source nsp, with other sources only a label of metrics.",
    )
    conduit: str = Field(
        default="",
        description="Name of the conduit; required with source nsp, with other sources only a label of metrics.",
    )
    identifier_offset_start: int = number(
        DEFAULT_OFFSET,
        "mark",
        "The lowest identifier offset of a stream, as configured in Meridio.",
        low=255,
        high=2**31,
    )
    tls_cert: OptionalPath = Field(
        default=None,
        description="Certificate of lbguard (PEM, with intermediates), for TLS; read again for each connection.",
    )
    tls_key: OptionalPath = Field(default=None, description="Private key of nsp.tls_cert (PEM).")
    tls_ca: OptionalPath = Field(default=None, description="Authorities of the registry's certificate (PEM).")
    spiffe_socket: SpiffeAddress = Field(
        default="",
        description="Address of a SPIFFE Workload API that gives certificate and authorities, instead of files.",
        json_schema_extra={"unit": "address", "allowed": "unix:///PATH, or empty"},
    )
    tls_server_name: PeerPattern = Field(
        default="",
        description=(
            "Name in the registry's certificate, or a pattern such as spiffe://example.org/*; empty: with files"
            " the host of nsp.address, with SPIFFE any name of the own trust domain, as in Meridio's programs."
        ),
    )
    keepalive_time: Duration = seconds(
        30.0, "A keepalive ping is sent on a connection that is idle for this long; 0 turns it off.", high=3600
    )
    keepalive_timeout: Duration = seconds(
        10.0, "The connection is lost when no answer to the ping arrives within this time.", low=0.1, high=600
    )
    max_backoff: Duration = seconds(1.0, "The longest wait before the registry is dialled again.", low=0.05, high=60)
    settle_time: Duration = seconds(
        60.0,
        "After a loss of the registry, a list that lacks many known entries removes nothing for this long; 0"
        " turns it off.",
        high=3600,
    )
    settle_share: float = ratio(0.5, "The share of known entries that may be missing after a loss without that wait.")

    @model_validator(mode="after")
    def _certificates(self) -> "NspSettings":
        files = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_ca": self.tls_ca}
        given = [name for name, path in files.items() if path is not None]
        missing = [name for name in files if name not in given]
        if given and self.spiffe_socket:
            raise _refusal("spiffe_socket", self.spiffe_socket, f"not together with nsp.{given[0]}", "one of the two")
        if given and missing:
            reason = "certificate, key and the registry's authorities go together"
            raise _refusal(missing[0], "unset", reason, "a PEM file")
        return self


def check_place(settings: NspSettings) -> None:
    """Check that the conduit to watch is set, for source nsp.

    Raises:
        PydanticCustomError: a name is missing.
    """
    for name in ("trench", "conduit"):
        if not getattr(settings, name):
            raise _refusal(
                name, "unset", "needed with source nsp", f"the name of the {name}, as in Meridio's resources"
            )


def _refusal(name: str, value: str, reason: str, allowed: str) -> PydanticCustomError:
    context = {"setting": f"nsp.{name}", "value": value, "reason": reason, "allowed": allowed}
    return PydanticCustomError(ACROSS, "{reason}", context)


DialAddress = Annotated[str, checked(parse_dial_address)]


class NsmEventSettings(BaseModel):
    """Events of a network service manager on the targets' connections: outdated neighbours, and repairs."""

    model_config = GROUP
    enabled: bool = Field(default=False, description="Follow a network service manager's connections.")
    address: DialAddress = Field(
        default="unix:///var/lib/networkservicemesh/nsm.io.sock",
        description="Address of the manager: unix:///PATH, or tcp://HOST:PORT.",
        json_schema_extra={"unit": "address", "allowed": DIAL_EXAMPLES},
    )
    network_services: Patterns = Field(
        default=(),
        description="Names of the network services that targets connect to, such as proxy.conduit-a.trench-a.default:"
        " the manager then reports those of the whole cluster; empty: all connections of its own node.",
        json_schema_extra={"unit": "list"},
    )
    path_segments: Patterns = Field(
        default=(),
        description="Names that must follow each other in a connection's path, such as a manager's; empty: any.",
        json_schema_extra={"unit": "list"},
    )
    heal_time: Duration = seconds(
        15.0,
        "Expected duration of a repair that the manager reports; no hold lasts longer than grace.max.",
        low=0.1,
        high=LEASE_MAX_S,
    )
    backoff_max: Duration = seconds(1.0, "The longest wait before dialling the manager again.", low=0.05, high=60)
    tls_cert: OptionalPath = Field(
        default=None, description="Own certificate (PEM, with intermediates), for TLS over TCP; read again on change."
    )
    tls_key: OptionalPath = Field(default=None, description="Key of nsm.tls_cert (PEM); read again on change.")
    tls_ca: OptionalPath = Field(
        default=None, description="Authorities of the manager's certificate (PEM); read again on change."
    )
    tls_server_name: PeerPattern = Field(
        default="",
        description="Name in the manager's certificate, or a pattern such as spiffe://example.org/*; empty: the host.",
    )

    @model_validator(mode="after")
    def _whole_tls(self) -> "NsmEventSettings":
        files = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_ca": self.tls_ca}
        missing = [name for name, path in files.items() if path is None]
        if 0 < len(missing) < len(files):
            raise PydanticCustomError(
                ACROSS,
                "certificate, key and the manager's authorities go together",
                {"setting": f"nsm.{missing[0]}", "value": "unset", "allowed": f"all of {', '.join(files)}, or none"},
            )
        return self


class MeshSettings(BaseModel):
    """Settings of the surrounding mesh. Only check-config reads them, and warns about contradictions."""

    model_config = GROUP
    request_timeout: OptionalDuration = seconds(
        None,
        "Time for which clients wait for a connection (Meridio: REQUEST_TIMEOUT, 15s); unset: not checked.",
        high=3600,
    )
    max_backoff: OptionalDuration = seconds(
        None,
        "The longest wait before the mesh dials again (Meridio: GRPC_MAX_BACKOFF, 5s); unset: not checked.",
        high=3600,
    )
    ip_release_delay: OptionalDuration = seconds(
        None,
        "Time for which proxies keep the address of a closed connection (Meridio: IP_RELEASE_DELAY, 20s);"
        " unset: not checked.",
        high=3600,
    )

    @property
    def heal_path_s(self) -> float:
        """Return the repair time when the first request is lost: its timeout, then the next one's wait; 0: unknown."""
        return (self.request_timeout or 0.0) + (self.max_backoff or 0.0)
