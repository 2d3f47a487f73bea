"""Builds the source `kubernetes` from the settings."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from lbguard.core.addr import Prefix
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.errors import StartError
from lbguard.service.identifier_file import IdentifierFile
from lbguard.settings.kubernetes import KubernetesSettings
from lbguard.settings.model import Settings
from lbguard.sources.kubernetes.address import ApiAddress, Resource
from lbguard.sources.kubernetes.compose import StreamsConfig
from lbguard.sources.kubernetes.endpoint_slices import SERVICE_LABEL, EndpointSliceReader
from lbguard.sources.kubernetes.meridio2 import GatewayName, LoadBalancerEndpointSliceReader
from lbguard.sources.kubernetes.objects import Read
from lbguard.sources.kubernetes.source import KubernetesConfig, KubernetesSource

_REST_MARGIN_S = 10.0
"""The identifier of a target that left rests this much longer than its drain."""
_NAME_BYTES_MAX = 1000


def identifiers_path(settings: Settings) -> Path:
    """Return the file that keeps the identifiers."""
    return settings.kubernetes.identifiers or settings.socket.with_name(f"{settings.socket.name}.identifiers")


def make_kubernetes_source(
    settings: Settings, emit: Callable[[SourceSnapshot | SourceLost], None], drain_window_s: Callable[[], float]
) -> KubernetesSource:
    """Build the source.

    Raises:
        StartError: the extra is not installed, or nothing says where the API server or the namespace is.
    """
    check_client()
    kubernetes = settings.kubernetes
    address = api_address(kubernetes)
    namespace = kubernetes.namespace or _namespace_of(address)
    resource, read = _objects(kubernetes, namespace)
    vips: dict[str, tuple[Prefix, ...]] = {}
    for each in kubernetes.stream_vips:
        vips[each.stream] = (*vips.get(each.stream, ()), each.vip)
    config = KubernetesConfig(
        address=address,
        resource=resource,
        read=read,
        streams=StreamsConfig(
            streams=kubernetes.streams,
            numbered=bool(kubernetes.gateway),
            max_targets=kubernetes.max_targets,
            offset_start=kubernetes.identifier_offset_start,
            vips=vips,
            settle_s=kubernetes.settle_time,
        ),
    )
    whose = f"gateway {namespace} {kubernetes.gateway}" if kubernetes.gateway else f"services {namespace}"
    file = IdentifierFile(identifiers_path(settings), whose)
    return KubernetesSource(config, emit, file, rest_s=lambda: drain_window_s() + _REST_MARGIN_S)


def check_client() -> None:
    """Check that the client library is installed.

    Raises:
        StartError: it is not.
    """
    if any(importlib.util.find_spec(name) is None for name in ("lightkube", "httpx2")):
        raise StartError("source = kubernetes needs the extra kubernetes: pip install 'lbguard[kubernetes]'")


def api_address(settings: KubernetesSettings) -> ApiAddress:
    """Return where the API server is.

    Raises:
        StartError: nothing says it.
    """
    url = settings.url
    if not url and settings.kubeconfig is None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
        if not (host and port):
            raise StartError(
                "the address of the API server is not known (KUBERNETES_SERVICE_HOST is unset: this is not a pod):"
                " set kubernetes.url or kubernetes.kubeconfig"
            )
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return ApiAddress(url=url, account=settings.account, kubeconfig=settings.kubeconfig)


def _namespace_of(address: ApiAddress) -> str:
    """Return the namespace of the service account, or of the kubeconfig.

    Raises:
        StartError: it cannot be read.
    """
    try:
        if address.kubeconfig is not None:
            from lightkube.config.kubeconfig import KubeConfig

            chosen = KubeConfig.from_file(address.kubeconfig).get()
            return chosen.namespace if chosen is not None else ""
        with (address.account / "namespace").open("rb") as file:
            name = file.read(_NAME_BYTES_MAX).decode().strip()
    except Exception as error:  # the library raises any, for a file of another form
        raise StartError(
            f"kubernetes.namespace is not set, and {address.kubeconfig or address.account} does not say it:"
            f" {type(error).__name__}: {error}"
        ) from None
    if not name:
        raise StartError(f"kubernetes.namespace is not set, and {address.account}/namespace is empty")
    return name


def _objects(settings: KubernetesSettings, namespace: str) -> tuple[Resource, Read]:
    """Return the kind of objects to follow, and their reader."""
    if settings.gateway:
        resource = Resource(
            group="meridio-2.nordix.org", version="v1alpha1", plural="loadbalancerendpointslices", namespace=namespace
        )
        gateway = GatewayName.parse(settings.gateway)
        return resource, LoadBalancerEndpointSliceReader(gateway, settings.distribution_groups)
    labels = f"{SERVICE_LABEL} in ({','.join(sorted(settings.services))})"
    resource = Resource(
        group="discovery.k8s.io", version="v1", plural="endpointslices", namespace=namespace, labels=labels
    )
    return resource, EndpointSliceReader(settings.services)
