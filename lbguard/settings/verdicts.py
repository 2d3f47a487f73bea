"""Settings of the verdict service: group `verdicts`, environment `LBGUARD_VERDICTS__...`."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.fields import ACROSS, GROUP, Duration, Listen, OptionalPath, SpiffeAddress, number, seconds, split
from lbguard.settings.peers import RULE_EXAMPLE, UNIX_PEER, PeerRule, parse_rule

PolicyRules = Annotated[tuple[Annotated[PeerRule, BeforeValidator(parse_rule)], ...], BeforeValidator(split)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictLimits:
    """Limits of the service. `rate` is verdicts per second of one reporter, `burst` how many may arrive at once."""

    message_bytes_max: int = 256 * 1024
    per_request_max: int = 256
    rate: float = 1000.0
    burst: int = 5000
    reporters_max: int = 320
    calls_max: int = 8
    subjects_max: int = 10_000
    subjects_total_max: int = 50_000


def _path(help_text: str) -> Any:
    return Field(default=None, description=help_text)


class VerdictSettings(BaseModel):
    """Listener for health verdicts of proxies and target sidecars. The API's unix socket always accepts them."""

    model_config = GROUP
    listen: Listen = Field(
        default="",
        description="Address at which verdicts are also accepted over TCP, always with mutual TLS; empty turns it off.",
        json_schema_extra={"unit": "host:port", "allowed": ":7443, 127.0.0.1:7443, [::1]:7443, or empty for off"},
    )
    policy: PolicyRules = Field(
        default=(),
        description=(
            "Peers and the subnets on which they may report. A peer is unix, a SPIFFE ID or dns:NAME, with *"
            " for any text within one part and ** across parts. A peer without a rule may report nothing over"
            " TCP, and anything over the socket."
        ),
        json_schema_extra={
            "unit": "list",
            "allowed": f"rules PEER=SUBNET SUBNET between commas, such as {RULE_EXAMPLE};"
            " in YAML also mappings of peer and subnets",
        },
    )
    tls_cert: OptionalPath = _path("Certificate of the TCP listener (PEM, with intermediates); read again on change.")
    tls_key: OptionalPath = _path("Private key of verdicts.tls_cert (PEM); read again on change.")
    tls_client_ca: OptionalPath = _path("Authorities of the peers' certificates (PEM); read again on change.")
    spiffe_socket: SpiffeAddress = Field(
        default="",
        description="Address of a SPIFFE Workload API that gives certificate and authorities, instead of files.",
        json_schema_extra={"unit": "address", "allowed": "unix:///PATH, or empty"},
    )
    reflection: bool = Field(default=False, description="Serve gRPC reflection to peers on TCP.")
    keepalive_time: Duration = seconds(
        30.0, "A keepalive ping is sent on a TCP connection that is idle for this long.", low=1, high=3600
    )
    keepalive_timeout: Duration = seconds(
        10.0, "The connection is closed when no answer to the ping arrives within this time.", low=0.1, high=600
    )
    connection_age: Duration = seconds(
        3600.0, "A TCP connection ends after about this time, so that its peer presents its certificate again.", low=1
    )
    max_message: int = number(256 * 1024, "bytes", "The largest request.", low=1024, high=4 * 2**20)
    max_per_request: int = number(256, "verdicts", "The most verdicts in one request.", low=1, high=10_000)
    rate: int = number(2000, "verdicts/s", "The sustained rate of one reporter.", low=1, high=1_000_000)
    burst: int = number(
        10_000, "verdicts", "The most verdicts that one reporter may send at once.", low=1, high=1_000_000
    )
    max_reporters: int = number(
        320,
        "reporters",
        "The most reporters; each has one stream. Those of one identity get at most four fifths of what the"
        " others leave free.",
        low=1,
        high=10_000,
    )
    max_calls: int = number(
        8,
        "calls",
        "The most calls of one reporter at once, replaced streams that are still open included.",
        low=2,
        high=1000,
    )
    max_subjects: int = number(
        20_000,
        "subjects",
        "The most subjects on which one reporter has current verdicts, or had them within the last two seconds."
        " A connection counts as one subject per four addresses.",
        low=1,
        high=1_000_000,
    )
    max_subjects_total: int = number(
        50_000,
        "subjects",
        "The same for all reporters together; those of one identity get at most four fifths of what the others"
        " leave free.",
        low=1,
        high=1_000_000,
    )

    @property
    def limits(self) -> VerdictLimits:
        """The limits, in the form of the service."""
        return VerdictLimits(
            message_bytes_max=self.max_message,
            per_request_max=self.max_per_request,
            rate=self.rate,
            burst=self.burst,
            reporters_max=self.max_reporters,
            calls_max=self.max_calls,
            subjects_max=self.max_subjects,
            subjects_total_max=self.max_subjects_total,
        )

    @property
    def names_tcp_peers(self) -> bool:
        """Return whether any rule is for a TCP peer."""
        return any(rule.peer != UNIX_PEER and rule.subnets for rule in self.policy)

    @model_validator(mode="after")
    def _certificates(self) -> "VerdictSettings":
        files = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_client_ca": self.tls_client_ca}
        given = [name for name, path in files.items() if path is not None]
        if given and self.spiffe_socket:
            _refuse("spiffe_socket", self.spiffe_socket, f"not together with verdicts.{given[0]}", "one of the two")
        if given and len(given) < len(files):
            missing = next(name for name in files if name not in given)
            _refuse(missing, "unset", "certificate, key and the peers' authorities go together", "a PEM file")
        if self.listen and not given and not self.spiffe_socket:
            _refuse(
                "listen",
                self.listen,
                "plaintext TCP is not served",
                "with verdicts.tls_cert, verdicts.tls_key and verdicts.tls_client_ca, or with verdicts.spiffe_socket",
            )
        return self

    @model_validator(mode="after")
    def _limits_fit(self) -> "VerdictSettings":
        if self.burst < self.max_per_request:
            _refuse("burst", str(self.burst), "a full request is never accepted", "at least verdicts.max_per_request")
        return self


def _refuse(name: str, value: str, reason: str, allowed: str) -> None:
    raise PydanticCustomError(
        ACROSS, "{reason}", {"setting": f"verdicts.{name}", "value": value, "reason": reason, "allowed": allowed}
    )
