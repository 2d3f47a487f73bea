"""Settings of `lbguard probe`: group `probe`, environment `LBGUARD_PROBE__...`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.fields import (
    ACROSS,
    GROUP,
    Duration,
    OptionalDuration,
    OptionalPath,
    Patterns,
    PeerPattern,
    SpiffeAddress,
    checked,
    group,
    number,
    seconds,
    split,
)
from lbguard.settings.notation import (
    DIAL_EXAMPLES,
    REPORT_EXAMPLES,
    format_duration,
    parse_dial_address,
    parse_report_address,
)

ReportAddresses = Annotated[tuple[Annotated[str, checked(parse_report_address)], ...], BeforeValidator(split)]
DialAddress = Annotated[str, checked(parse_dial_address)]

SubjectKind = Literal["connection", "link", "target", "self"]
"""The kinds of subjects of verdicts.

`connection`: the connection as a whole; its far end is a load balancer. `link`: each pair of addresses by itself; the
far end is a load balancer. `target`: each address of the far end, which is a target. `self`: each of our own addresses;
we are the target.
"""

LEASE_MAX_S = 300.0
"""Maximum lease of a verdict (lbguard.proto, Verdict.lease_s) and duration of a repair (heal_s)."""


def _path(help_text: str) -> Any:
    return Field(default=None, description=help_text)


def _check_tls(group: str, files: Mapping[str, Path | None], *, instead: bool = False) -> None:
    """Refuse an incomplete set of files for mutual TLS; `instead`: certificates have another source."""
    given = [name for name, path in files.items() if path is not None]
    missing = [name for name, path in files.items() if path is None]
    if given and missing:
        raise PydanticCustomError(
            ACROSS,
            f"needed with {group}.{given[0]}",
            {"setting": f"{group}.{missing[0]}", "value": "unset", "allowed": f"all of {', '.join(files)}, or none"},
        )
    if given and instead:
        raise PydanticCustomError(
            ACROSS,
            "certificates come from one place only",
            {
                "setting": f"{group}.{given[0]}",
                "value": str(files[given[0]]),
                "allowed": f"unset while {group}.spiffe_socket is set",
            },
        )


class NsmSettings(BaseModel):
    """Connections from a network service manager (probe.connections nsm)."""

    model_config = GROUP
    address: DialAddress = Field(
        default="unix:///var/lib/networkservicemesh/nsm.io.sock",
        description="Address of the manager: unix:///PATH, or tcp://HOST:PORT.",
        json_schema_extra={"unit": "address", "allowed": DIAL_EXAMPLES},
    )
    network_services: Patterns = Field(
        default=(),
        description="Names of the network services whose connections are monitored; empty: all.",
        json_schema_extra={"unit": "list"},
    )
    path_segments: Patterns = Field(
        default=(),
        description="Names that must follow each other in a connection's path, such as the client's; empty: any.",
        json_schema_extra={"unit": "list"},
    )
    role: Literal["client", "endpoint"] = Field(
        default="client", description="The local end of the connections; client: pings go from the source addresses."
    )
    subject: SubjectKind = Field(
        default="connection",
        description="Subject of verdicts. connection, link: the far end is a load balancer; target: the far end is a"
        " target; self: this host is the target.",
    )
    heal_time: Duration = seconds(
        15.0,
        "Expected duration of a repair by the mesh, sent with HEALING verdicts.",
        low=0.1,
        high=LEASE_MAX_S,
    )
    backoff_max: Duration = seconds(1.0, "The longest wait before dialling the manager again.", low=0.05, high=60)
    tls_cert: OptionalPath = _path("Own certificate (PEM, with intermediates), for TLS over TCP; read again on change.")
    tls_key: OptionalPath = _path("Key of probe.nsm.tls_cert (PEM); read again on change.")
    tls_ca: OptionalPath = _path("Authorities of the manager's certificate (PEM); read again on change.")
    tls_server_name: PeerPattern = Field(
        default="",
        description="Name in the manager's certificate, or a pattern such as spiffe://example.org/*; empty: the host.",
    )

    @model_validator(mode="after")
    def _whole_tls(self) -> "NsmSettings":
        _check_tls("probe.nsm", {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_ca": self.tls_ca})
        return self


class BridgeSettings(BaseModel):
    """Targets behind a bridge of the proxy (probe.connections bridge)."""

    model_config = GROUP
    name: str = Field(default="bridge0", min_length=1, max_length=15, description="Name of the bridge.")
    lb_ports: Patterns = Field(
        default=(),
        description="Ports (shell patterns) that lead to load balancers: neighbours behind them are judged as links.",
        json_schema_extra={"unit": "list"},
    )
    keep: Duration = seconds(
        600.0,
        "A neighbour whose entry the kernel removed is still pinged for this long, because it may be down.",
        high=86400.0,
    )


class ProbeSettings(BaseModel):
    """The datapath monitor, `lbguard probe`: pings connections and reports what it finds to load balancers."""

    model_config = GROUP
    enabled: bool = Field(default=False, description="Ping and report; off: `lbguard probe` waits and does nothing.")
    interval: Duration = seconds(2.0, "A round of pings begins this often.", low=0.02, high=3600)
    timeout: OptionalDuration = seconds(
        None,
        "The pings of a round are spread over this time; replies count until it ends. Unset: probe.interval.",
        low=0.01,
        high=3600,
    )
    count: int = number(4, "pings", "Pings to each address in a round.", low=1, high=100)
    bad_rounds: int = number(
        2, "rounds", "This many bad rounds among the last probe.of_rounds mean DOWN.", low=1, high=100
    )
    of_rounds: int = number(3, "rounds", "Number of last rounds that are considered.", low=1, high=100)
    good_rounds: int = number(1, "rounds", "This many good rounds in a row mean UP again.", low=1, high=100)
    detector: Literal["rounds", "phi"] = Field(
        default="rounds",
        description="rounds: bad_rounds of of_rounds; phi: suspicion grows with the time since the last reply.",
    )
    phi_threshold: float = Field(
        default=8.0,
        ge=0.5,
        le=100,
        description="Suspicion at which detector phi says DOWN.",
        json_schema_extra={"unit": "phi"},
    )
    connections: Literal["file", "nsm", "bridge"] = Field(
        default="file",
        description="Source of connections: a YAML file, a mesh manager, or a bridge's neighbours.",
    )
    connections_file: OptionalPath = _path("YAML file that lists connections; watched.")
    nsm: NsmSettings = group()
    bridge: BridgeSettings = group()
    report_to: ReportAddresses = Field(
        default=(),
        description="Load balancers to report to; link:PORT is the far end of each monitored link; empty: none.",
        json_schema_extra={"unit": "list", "allowed": f"addresses between commas, such as {REPORT_EXAMPLES}"},
    )
    report_backoff_max: Duration = seconds(
        1.0, "The longest wait before a load balancer is dialled again.", low=0.05, high=60
    )
    lease: OptionalDuration = seconds(
        None,
        "Time for which a verdict counts without renewal; unset: three intervals and the timeout.",
        low=1.0,
        high=LEASE_MAX_S,
    )
    max_connections: int = number(
        10_000, "connections", "At most this many connections are monitored; more are left out.", low=1, high=1_000_000
    )
    name: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="Name of this reporter at load balancers; empty: the host name.",
        json_schema_extra={"unit": "text", "allowed": "up to 63 letters, digits, '.', '_' or '-', or empty"},
    )
    tls_cert: OptionalPath = _path("Certificate of the probe (PEM, with intermediates), for reports over TCP.")
    tls_key: OptionalPath = _path(
        "Key of probe.tls_cert (PEM). When the files change, streams are opened again with them."
    )
    tls_ca: OptionalPath = _path("Authorities of the load balancers' certificates (PEM).")
    tls_server_name: PeerPattern = Field(
        default="",
        description="Name in the load balancers' certificates, or a pattern such as spiffe://example.org/*; empty: the"
        " host.",
    )
    spiffe_socket: SpiffeAddress = Field(
        default="",
        description="Address of a SPIFFE Workload API that gives certificate and authorities, instead of files.",
        json_schema_extra={"unit": "address", "allowed": "unix:///PATH, or empty"},
    )

    @property
    def timeout_in_force(self) -> float:
        """The timeout of a round, seconds."""
        return self.interval if self.timeout is None else self.timeout

    @model_validator(mode="after")
    def _fits_together(self) -> "ProbeSettings":
        tls = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_ca": self.tls_ca}
        _check_tls("probe", tls, instead=bool(self.spiffe_socket))
        if self.timeout is not None and self.timeout > self.interval:
            raise PydanticCustomError(
                ACROSS,
                "rounds would overlap",
                {
                    "setting": "probe.timeout",
                    "value": format_duration(self.timeout),
                    "allowed": f"at most probe.interval, which is {format_duration(self.interval)}",
                },
            )
        if self.bad_rounds > self.of_rounds:
            raise PydanticCustomError(
                ACROSS,
                "more than probe.of_rounds",
                {
                    "setting": "probe.bad_rounds",
                    "value": str(self.bad_rounds),
                    "allowed": f"at most probe.of_rounds, which is {self.of_rounds}",
                },
            )
        if self.enabled and self.connections == "file" and self.connections_file is None:
            raise PydanticCustomError(
                ACROSS,
                "needed with probe.connections file",
                {"setting": "probe.connections_file", "value": "unset", "allowed": "the YAML file of connections"},
            )
        return self
