"""Group of settings for targets from the Kubernetes API (source kubernetes)."""

import ipaddress
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.core.addr import Prefix, parse_prefix, prefix_overlaps, why_no_vip
from lbguard.core.model import DEFAULT_OFFSET, MAX_TARGETS, NAME_PATTERN
from lbguard.settings.fields import ACROSS, GROUP, Duration, FilePath, OptionalPath, checked, number, seconds, split

URL_EXAMPLES = "https://HOST:PORT, http://127.0.0.1:8001, or empty"
VIP_EXAMPLE = "web=20.0.0.1/32"
GATEWAY_EXAMPLES = "gateway-a, namespace-b/gateway-a, or empty"


class StreamVip(NamedTuple):
    """A VIP of a stream."""

    stream: str
    vip: Prefix


def check_name(text: str) -> None:
    """Refuse text that is not a name of an object that can be a stream's too.

    Raises:
        ValueError: it is not.
    """
    if NAME_PATTERN.fullmatch(text.strip()) is None:
        raise ValueError("not a name of 1 to 63 letters, digits, '.', '_' or '-'")


def check_gateway(text: str) -> None:
    """Refuse text that does not name a Gateway; empty means none.

    Raises:
        ValueError: it does not.
    """
    namespace, slash, name = text.strip().rpartition("/")
    if text.strip():
        check_name(name)
        if slash:
            check_name(namespace)


def check_namespace(text: str) -> None:
    """Refuse text that cannot be a namespace; empty means that of the account.

    Raises:
        ValueError: it cannot.
    """
    if text.strip():
        check_name(text)


def check_url(text: str) -> None:
    """Refuse text that is not the URL of an API server; empty means the one of the cluster.

    Raises:
        ValueError: it is not, or it would send the token in plaintext over a network.
    """
    if not text.strip():
        return
    try:
        url = urlsplit(text.strip())
        host, _ = url.hostname or "", url.port
    except ValueError:
        raise ValueError("not a URL") from None
    if url.scheme not in ("http", "https") or not host or url.username or url.query or url.fragment:
        raise ValueError("not the URL of an API server")
    if url.scheme == "http" and not _is_loopback(host):
        raise ValueError("http would send the token in plaintext; it is for the loopback only")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_stream_vip(text: str) -> StreamVip:
    """Read `NAME=VIP`.

    Raises:
        ValueError: the text is not a VIP of a stream.
    """
    name, _, vip = text.strip().partition("=")
    if NAME_PATTERN.fullmatch(name) is None or not vip:
        raise ValueError(f"not a VIP of a stream, such as {VIP_EXAMPLE}")
    prefix = parse_prefix(vip)
    if why := why_no_vip(prefix):
        raise ValueError(f"{vip} cannot be a VIP: it is {why}")
    return StreamVip(name, prefix)


Names = Annotated[tuple[Annotated[str, checked(check_name)], ...], BeforeValidator(split)]
StreamVips = Annotated[tuple[Annotated[str, checked(parse_stream_vip)], ...], BeforeValidator(split)]


class KubernetesSettings(BaseModel):
    """Streams and targets from objects of the Kubernetes API (source kubernetes; needs the extra `kubernetes`)."""

    model_config = GROUP
    services: Names = Field(
        default=(),
        description="Services whose EndpointSlices are followed, each a stream. lbguard gives the identifiers.",
        json_schema_extra={"unit": "list"},
    )
    gateway: Annotated[str, checked(check_gateway)] = Field(
        default="",
        description="Gateway of Meridio-2 whose LoadBalancerEndpointSlices are followed, in place of Services. Each"
        " DistributionGroup is a stream, with the identifiers of the objects.",
        json_schema_extra={"unit": "name", "allowed": GATEWAY_EXAMPLES},
    )
    distribution_groups: Names = Field(
        default=(),
        description="DistributionGroups of the Gateway that are followed; empty: all.",
        json_schema_extra={"unit": "list"},
    )
    namespace: Annotated[str, checked(check_namespace)] = Field(
        default="", description="Namespace of the objects; empty: that of the service account or of the kubeconfig."
    )
    vips: StreamVips = Field(
        default=(),
        description="VIPs of the streams, which the embedded distributor needs.",
        json_schema_extra={"unit": "list", "allowed": f"NAME=VIP between commas, such as {VIP_EXAMPLE}"},
    )
    max_targets: int = number(
        100,
        "targets",
        "Targets for which the table of each stream has room: the identifiers of a Service are 1 to this, those of a"
        " DistributionGroup 0 to one less.",
        low=1,
        high=MAX_TARGETS,
    )
    identifier_offset_start: int = number(
        DEFAULT_OFFSET, "mark", "The lowest identifier offset of a stream.", low=255, high=2**31
    )
    identifiers: OptionalPath = Field(
        default=None,
        description="File that keeps marks, identifiers and targets over a restart; unset: beside the API's socket.",
    )
    settle_time: Duration = seconds(
        60.0,
        "A stream that loses all its targets at once keeps them for this long; 0 turns it off.",
        high=3600,
    )
    url: Annotated[str, checked(check_url)] = Field(
        default="",
        description="URL of the API server; empty: the cluster's (KUBERNETES_SERVICE_HOST).",
        json_schema_extra={"unit": "address", "allowed": URL_EXAMPLES},
    )
    account: FilePath = Field(
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Directory of the service account: token, ca.crt and namespace; they are read again.",
    )
    kubeconfig: OptionalPath = Field(
        default=None,
        description="A kubeconfig, in place of url and account: its current context is used. For development.",
    )

    @model_validator(mode="after")
    def _streams(self) -> "KubernetesSettings":
        if self.services and self.gateway:
            raise _refusal("gateway", self.gateway, "not together with kubernetes.services", "one of the two")
        if self.distribution_groups and not self.gateway:
            named = ",".join(self.distribution_groups)
            raise _refusal("gateway", "unset", f"needed for kubernetes.distribution_groups {named}", GATEWAY_EXAMPLES)
        if self.url and self.kubeconfig is not None:
            raise _refusal("url", self.url, "not together with kubernetes.kubeconfig", "one of the two")
        for name, streams in (("services", self.services), ("distribution_groups", self.distribution_groups)):
            if len(set(streams)) < len(streams):
                raise _refusal(name, ",".join(streams), "a stream is named twice", "each name once")
        for vip, stream, other, owner in prefix_overlaps((each.vip, each.stream) for each in self.stream_vips):
            reason = f"streams {owner} and {stream} share VIP {vip}" + ("" if vip == other else f", a part of {other}")
            raise _refusal("vips", ",".join(self.vips), reason, "each VIP in one stream")
        strange = {each.stream for each in self.stream_vips}.difference(self.streams)
        if self.streams and strange:
            reason = f"{sorted(strange)[0]} is none of the streams"
            raise _refusal("vips", ",".join(self.vips), reason, f"VIPs of {', '.join(self.streams)}")
        return self

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that are named; empty: all of the Gateway."""
        return self.services or self.distribution_groups

    @property
    def stream_vips(self) -> tuple[StreamVip, ...]:
        """The VIPs, in the given order."""
        return tuple(parse_stream_vip(text) for text in self.vips)


def check_objects(settings: KubernetesSettings) -> None:
    """Check that objects to follow are named, for source kubernetes.

    Raises:
        PydanticCustomError: they are not.
    """
    if not (settings.services or settings.gateway):
        raise _refusal("services", "unset", "needed with source kubernetes", "names of Services, or kubernetes.gateway")


def _refusal(name: str, value: str, reason: str, allowed: str) -> PydanticCustomError:
    context = {"setting": f"kubernetes.{name}", "value": value, "reason": reason, "allowed": allowed}
    return PydanticCustomError(ACROSS, "{reason}", context)
