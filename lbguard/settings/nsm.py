"""Settings of the mesh events at the load balancer: group `nsm`, environment `LBGUARD_NSM__...`."""

from typing import Annotated

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.dial_address import DIAL_EXAMPLES, parse_dial_address
from lbguard.settings.fields import GROUP, Duration, OptionalPath, Patterns, PeerPattern, checked, seconds
from lbguard.settings.probe import LEASE_MAX_S

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
                "across",
                "certificate, key and the manager's authorities go together",
                {"setting": f"nsm.{missing[0]}", "value": "unset", "allowed": f"all of {', '.join(files)}, or none"},
            )
        return self
