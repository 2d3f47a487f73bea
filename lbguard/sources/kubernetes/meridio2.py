"""Reader of LoadBalancerEndpointSlices of Meridio-2 (meridio-2.nordix.org/v1alpha1). Pure.

An object has the endpoints of one DistributionGroup for one Gateway. Identifiers are given, from 0; a target has one
endpoint with the addresses of both families.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lbguard.core.model import NAME_PATTERN
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
from lbguard.sources.skipped import Reason, Skipped, shown

_IDENTIFIER_MAX = 2**31 - 1


class GatewayName(NamedTuple):
    """A Gateway; an empty namespace means any."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, given: str) -> "GatewayName":
        """Read `NAME` or `NAMESPACE/NAME`."""
        namespace, _, name = given.rpartition("/")
        return cls(namespace, name)


class LoadBalancerEndpointSliceReader:
    """Reads the objects of one Gateway; of these groups only, if there are any."""

    def __init__(self, gateway: GatewayName, groups: Collection[str] = ()) -> None:
        self._gateway = gateway
        self._groups = frozenset(groups)

    def __call__(self, raw: Mapping[str, Any]) -> ObjectEntries | None:
        """Read one object; None: it is for another Gateway or group.

        Raises:
            BadObjectError: it cannot be read at all.
        """
        spec = mapping(raw.get("spec"), "spec")
        gateway = mapping(spec.get("gatewayRef"), "spec.gatewayRef")
        group = text(spec.get("distributionGroupName"), "spec.distributionGroupName")
        name, namespace = text(gateway.get("name"), "spec.gatewayRef.name"), optional_text(gateway.get("namespace"))
        if name != self._gateway.name or self._gateway.namespace not in ("", namespace):
            return None
        if self._groups and group not in self._groups:
            return None
        if NAME_PATTERN.fullmatch(group) is None:
            raise BadObjectError(f"DistributionGroup {shown(group)} cannot be the name of a stream")
        endpoints: list[Endpoint] = []
        unreadable: set[str] = set()
        skipped: list[Skipped] = []
        for number, item in enumerate(items(spec.get("endpoints"), "spec.endpoints")):
            place = f"spec.endpoints[{number}]"
            entry = mapping(item, place)
            target = mapping(entry.get("target"), f"{place}.target")
            key, label = text(target.get("uid"), f"{place}.target.uid"), optional_text(target.get("name"))
            endpoint, problems = _endpoint(entry, key, label, f"target {shown(label or key)} of {group}", place)
            skipped += problems
            if endpoint is None:
                unreadable.add(key)
            else:
                endpoints.append(endpoint)
        return ObjectEntries(
            stream=group, endpoints=tuple(endpoints), unreadable=frozenset(unreadable), skipped=tuple(skipped)
        )


def _endpoint(
    entry: Mapping[str, Any], key: str, label: str, what: str, place: str
) -> tuple[Endpoint | None, tuple[Skipped, ...]]:
    """Return an endpoint, and the problems with it; None: it cannot be used."""
    identifier = entry.get("identifier")
    if identifier is None:
        return None, (Skipped(Reason.NO_IDENTIFIER, what),)
    if type(identifier) is not int or not 0 <= identifier <= _IDENTIFIER_MAX:
        return None, (Skipped(Reason.BAD_IDENTIFIER, f"{what}: {shown(identifier)}"),)
    listed = [
        mapping(each, f"{place}.addresses").get("ip") for each in items(entry.get("addresses"), f"{place}.addresses")
    ]
    ips, problems = addresses(listed, what)
    if not ips or any(problem.reason is Reason.BAD_ADDRESS for problem in problems):
        return None, problems
    ready = flag(entry.get("ready"), f"{place}.ready", default=False)
    return Endpoint(key=key, label=label or key, ips=ips, identifier=identifier, draining=not ready), problems
