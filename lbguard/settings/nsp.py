"""Settings of the source `nsp`: group `nsp`, environment `LBGUARD_NSP__...`."""

from typing import Annotated

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.core.stream_limits import DEFAULT_OFFSET
from lbguard.settings.dial_address import parse_dial_address
from lbguard.settings.fields import (
    GROUP,
    Duration,
    OptionalPath,
    PeerPattern,
    SpiffeAddress,
    checked,
    number,
    ratio,
    seconds,
)

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
    return PydanticCustomError("across", "{reason}", context)
