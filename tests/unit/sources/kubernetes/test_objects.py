"""Readers of the two kinds of objects: what an endpoint is, what it is not, and what is said of the rest."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import parse_ip
from lbguard.sources.kubernetes.endpoint_slices import EndpointSliceReader, merge
from lbguard.sources.kubernetes.meridio2 import GatewayName, LoadBalancerEndpointSliceReader
from lbguard.sources.kubernetes.objects import BadObjectError, ObjectEntries
from tests.fakes.kubernetes_api import endpoint, group_slice, member, service_slice

SERVICES = EndpointSliceReader(("web",))
GATEWAY = LoadBalancerEndpointSliceReader(GatewayName.parse("gateway-a"))


def of_service(*endpoints: Any, family: str = "IPv4") -> ObjectEntries:
    entries = SERVICES(service_slice("web", *endpoints, family=family))
    assert entries is not None
    return entries


def of_group(*endpoints: Any) -> ObjectEntries:
    entries = GATEWAY(group_slice("group-a", *endpoints))
    assert entries is not None
    return entries


def reasons(entries: ObjectEntries) -> list[str]:
    return [each.reason.value for each in entries.skipped]


# EndpointSlices of a Service


def test_an_endpoint_of_a_pod() -> None:
    (found,) = of_service(endpoint("pod-a", "10.0.0.1")).endpoints
    assert (found.key, found.label, found.identifier) == ("uid/uid-of-pod-a", "pod-a", None)
    assert found.ips == (parse_ip("10.0.0.1"),)


@pytest.mark.parametrize(
    ("conditions", "drains"),
    [
        ({}, False),
        ({"ready": None}, False),
        ({"ready": True, "serving": True, "terminating": False}, False),
        ({"ready": False}, True),
        ({"ready": False, "serving": True, "terminating": True}, True),
        ({"ready": True, "terminating": True}, True),  # publishNotReadyAddresses
    ],
)
def test_conditions(conditions: dict[str, bool], drains: bool) -> None:
    (found,) = of_service({"addresses": ["10.0.0.1"], "conditions": conditions}).endpoints
    assert found.draining is drains


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"targetRef": {"kind": "Pod", "name": "a", "uid": "u"}, "hostname": "h"}, "uid/u"),
        ({"targetRef": {"kind": "Pod", "name": "a"}, "hostname": "h"}, "Pod/a"),
        ({"hostname": "h"}, "hostname/h"),
        ({}, "address/10.0.0.1"),
    ],
)
def test_what_a_target_is_known_by(changes: dict[str, Any], key: str) -> None:
    (found,) = of_service({"addresses": ["10.0.0.1"], **changes}).endpoints
    assert found.key == key


def test_the_first_address_of_an_endpoint_counts() -> None:
    (found,) = of_service(endpoint("a", "10.0.0.1", "10.0.0.2")).endpoints
    assert found.ips == (parse_ip("10.0.0.1"),)


def test_families_of_a_target_are_merged_and_one_that_drains_drains_it() -> None:
    ipv6 = of_service(endpoint("a", "fd00::1", ready=False), endpoint("b", "fd00::2"), family="IPv6")
    ipv4 = of_service(endpoint("a", "10.0.0.1"))
    for endpoints in ([*ipv6.endpoints, *ipv4.endpoints], [*ipv4.endpoints, *ipv6.endpoints]):
        assert {each.label: (each.ips, each.draining) for each in merge(endpoints).values()} == {
            "a": ((parse_ip("10.0.0.1"), parse_ip("fd00::1")), True),
            "b": ((parse_ip("fd00::2"),), False),
        }


def test_a_target_in_two_slices_of_a_family_is_one() -> None:
    both = of_service(endpoint("a", "10.0.0.1")).endpoints * 2
    assert [each.ips for each in merge(both).values()] == [(parse_ip("10.0.0.1"),)]


def test_another_service_is_left_alone() -> None:
    assert SERVICES(service_slice("other", endpoint("a", "10.0.0.1"))) is None
    assert SERVICES({"metadata": {"name": "x"}, "addressType": "IPv4"}) is None


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({**service_slice("web"), "addressType": "FQDN"}, "addressType is 'FQDN'"),
        ({**service_slice("web"), "endpoints": {}}, "endpoints is not a list"),
        (service_slice("web", endpoint("a", "fd00::1")), "fd00::1 is not IPv4"),
        ({**service_slice("web"), "endpoints": ["a"]}, "endpoints[0] is not a mapping"),
        (service_slice("web", {"addresses": [1]}), "endpoints[0].addresses"),
        (service_slice("web", {"addresses": ["10.0.0.1"], "conditions": {"ready": "yes"}}), "neither true nor false"),
    ],
)
def test_an_object_that_cannot_be_read(raw: dict[str, Any], why: str) -> None:
    with pytest.raises(BadObjectError) as caught:
        SERVICES(raw)
    assert why in str(caught.value)


@pytest.mark.parametrize("address", ["", "10.0.0", "10.0.0.1/24", "fe80::1%eth0", "127.0.0.1", "224.0.0.1", "x" * 999])
def test_an_address_that_cannot_be_used(address: str) -> None:
    item = {"addresses": [address], "targetRef": {"name": "a"}}
    if not address:
        with pytest.raises(BadObjectError):
            of_service(item)
        return
    entries = of_service(item, endpoint("b", "10.0.0.2"))
    assert [each.label for each in entries.endpoints] == ["b"]
    assert entries.unreadable == {"target/a"}
    assert reasons(entries) == ["bad_address"]


# LoadBalancerEndpointSlices


def test_an_endpoint_of_a_distribution_group() -> None:
    entries = of_group(member("a", 0, "10.0.0.1", "fd00::1"), member("b", 7, "10.0.0.2", ready=False))
    first, second = entries.endpoints
    assert (entries.stream, first.key, first.label, first.identifier) == ("group-a", "uid-of-a", "a", 0)
    assert first.ips == (parse_ip("10.0.0.1"), parse_ip("fd00::1"))
    assert (first.draining, second.draining, second.identifier) == (False, True, 7)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (member("a", None, "10.0.0.1"), "no_identifier"),
        (member("a", -1, "10.0.0.1"), "bad_identifier"),
        (member("a", 2**31, "10.0.0.1"), "bad_identifier"),
        ({**member("a", 0, "10.0.0.1"), "identifier": True}, "bad_identifier"),
        ({**member("a", 0, "10.0.0.1"), "identifier": "0"}, "bad_identifier"),
        (member("a", 0), "no_address"),
        (member("a", 0, "10.0.0.1", "here"), "bad_address"),
    ],
)
def test_an_endpoint_that_cannot_be_used(entry: dict[str, Any], reason: str) -> None:
    entries = of_group(entry, member("b", 1, "10.0.0.2"))
    assert [each.label for each in entries.endpoints] == ["b"]
    assert entries.unreadable == {"uid-of-a"}
    assert reasons(entries) == [reason]
    assert "'a' of group-a" in entries.skipped[0].what


def test_a_second_address_of_a_family_is_left_out() -> None:
    entries = of_group(member("a", 0, "10.0.0.1", "10.0.0.2"))
    assert entries.endpoints[0].ips == (parse_ip("10.0.0.1"),)
    assert reasons(entries) == ["surplus_address"]


def test_other_gateways_and_groups_are_left_alone() -> None:
    raw = group_slice("group-a", member("a", 0, "10.0.0.1"), namespace="here")
    for gateway, groups, taken in [
        ("gateway-a", (), True),
        ("gateway-b", (), False),
        ("here/gateway-a", (), True),
        ("there/gateway-a", (), False),
        ("gateway-a", ("group-a",), True),
        ("gateway-a", ("group-b",), False),
    ]:
        found = LoadBalancerEndpointSliceReader(GatewayName.parse(gateway), groups)(raw)
        assert (found is not None) is taken


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"spec": {}},
        {"spec": {"gatewayRef": {"name": "gateway-a"}}},
        group_slice("a/b"),
        group_slice("x" * 64),
        group_slice("group-a", {"identifier": 0}),
        group_slice("group-a", {**member("a", 0), "addresses": "10.0.0.1"}),
        group_slice("group-a", {**member("a", 0, "10.0.0.1"), "ready": "true"}),
    ],
)
def test_a_slice_that_cannot_be_read(raw: dict[str, Any]) -> None:
    with pytest.raises(BadObjectError):
        GATEWAY(raw)


KEYS = [
    *("metadata", "labels", "kubernetes.io/service-name", "spec", "gatewayRef", "distributionGroupName", "endpoints"),
    *("target", "targetRef", "name", "uid", "addresses", "ip", "identifier", "ready", "conditions"),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["web", "gateway-a", "10.0.0.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@given(content=ANYTHING, place=st.sampled_from(["endpoints", "metadata", "spec", "addressType"]))
def test_no_content_raises_another_exception(content: Any, place: str) -> None:
    for read, raw in (
        (SERVICES, service_slice("web", endpoint("a", "10.0.0.1"))),
        (GATEWAY, group_slice("group-a", member("a", 0, "10.0.0.1"))),
    ):
        spoiled = {**raw, place: content}
        if place == "spec" and isinstance(content, dict):
            spoiled = {**raw, "spec": {**raw.get("spec", {}), **content}}
        try:
            entries = read(spoiled)
        except BadObjectError:
            continue
        assert entries is None or all(each.ips for each in entries.endpoints)
