"""Reader of EndpointSlices of Services (discovery.k8s.io/v1), and how several of them give one list. Pure.

An object has addresses of one family, and a Service has at least one object per family. The endpoints of one target
are found by what they refer to (its uid, else its name), else by their host name, else by their address. While the
control plane moves an endpoint to another object, both may list it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lbguard.core.addr import Ip, format_ip, is_ipv4
from lbguard.sources.kubernetes.objects import (
    BadObjectError,
    Endpoint,
    ObjectEntries,
    addresses,
    flag,
    items,
    mapping,
    optional_text,
    text,
)
from lbguard.sources.skipped import Skipped, shown

SERVICE_LABEL = "kubernetes.io/service-name"
"""Label of an EndpointSlice with the name of its Service."""

_FAMILIES = {"IPv4": True, "IPv6": False}


class EndpointSliceReader:
    """Reads the objects of these Services."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(services)

    def __call__(self, raw: Mapping[str, Any]) -> ObjectEntries | None:
        """Read one object; None: it is of another Service.

        Raises:
            BadObjectError: it cannot be read at all.
        """
        metadata = mapping(raw.get("metadata"), "metadata")
        service = optional_text(mapping(metadata.get("labels") or {}, "metadata.labels").get(SERVICE_LABEL))
        if service not in self._services:
            return None
        family = raw.get("addressType")
        if not isinstance(family, str) or family not in _FAMILIES:
            raise BadObjectError(f"addressType is {shown(family)}, not IPv4 or IPv6")
        endpoints: list[Endpoint] = []
        unreadable: set[str] = set()
        skipped: list[Skipped] = []
        for number, item in enumerate(items(raw.get("endpoints"), "endpoints")):
            place = f"endpoints[{number}]"
            entry = mapping(item, place)
            # The API's rule: the addresses of an endpoint are interchangeable, and the first one is used.
            first = items(entry.get("addresses"), f"{place}.addresses")[:1]
            key, label = _identity(entry, place, first)
            ips, problems = addresses(first, f"target {shown(label)} of {service}")
            if ips and is_ipv4(ips[0]) != _FAMILIES[family]:
                raise BadObjectError(f"{place}.addresses: {format_ip(ips[0])} is not {family}")
            skipped += problems
            if ips:
                endpoints.append(Endpoint(key=key, label=label, ips=ips, draining=_drains(entry, place)))
            else:
                unreadable.add(key)
        return ObjectEntries(
            stream=service, endpoints=tuple(endpoints), unreadable=frozenset(unreadable), skipped=tuple(skipped)
        )


def _identity(entry: Mapping[str, Any], place: str, listed: list[Any]) -> tuple[str, str]:
    """Return the key of an endpoint and its name for people."""
    target = mapping(entry.get("targetRef") or {}, f"{place}.targetRef")
    uid, name = optional_text(target.get("uid")), optional_text(target.get("name"))
    hostname = optional_text(entry.get("hostname"))
    address = text(listed[0], f"{place}.addresses") if listed else ""
    if uid:
        return f"uid/{uid}", name or uid
    if name:
        return f"{optional_text(target.get('kind')) or 'target'}/{name}", name
    if hostname:
        return f"hostname/{hostname}", hostname
    return f"address/{address}", address or place


def _drains(entry: Mapping[str, Any], place: str) -> bool:
    """Return whether an endpoint is to get no new connections; what is not said is the API's default."""
    conditions = mapping(entry.get("conditions") or {}, f"{place}.conditions")
    ready = flag(conditions.get("ready"), f"{place}.conditions.ready", default=True)
    return not ready or flag(conditions.get("terminating"), f"{place}.conditions.terminating", default=False)


def merge(endpoints: Iterable[Endpoint]) -> dict[str, Endpoint]:
    """Return one endpoint for each target, with the first address of each family that is listed for it.

    A target drains when one of its endpoints does: a family that is not ready gets no new connections.
    """
    merged: dict[str, Endpoint] = {}
    for each in endpoints:
        known = merged.get(each.key)
        if known is None:
            merged[each.key] = each
            continue
        by_length: dict[int, Ip] = {len(ip): ip for ip in (*each.ips, *known.ips)}
        merged[each.key] = Endpoint(
            key=each.key,
            label=known.label,
            ips=tuple(by_length[length] for length in sorted(by_length)),
            identifier=known.identifier,
            draining=known.draining or each.draining,
        )
    return merged
