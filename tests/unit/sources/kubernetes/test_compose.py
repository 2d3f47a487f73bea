"""The list that objects give: streams, marks, what stays, what waits, and which claim counts."""

from dataclasses import replace
from typing import Any

from lbguard.core.addr import parse_ip, parse_prefix
from lbguard.sources.kubernetes.compose import Composed, Composer, Memory, Objects, StreamsConfig
from lbguard.sources.kubernetes.endpoint_slices import EndpointSliceReader
from lbguard.sources.kubernetes.meridio2 import GatewayName, LoadBalancerEndpointSliceReader
from tests.fakes.kubernetes_api import Object, endpoint, group_slice, member, service_slice

SERVICES = StreamsConfig(streams=("web", "dns"), max_targets=10)
GROUPS = StreamsConfig(numbered=True, max_targets=10)
A, B, C = (endpoint(name, f"10.0.0.{number}") for number, name in enumerate("abc", start=1))


class World:
    """Objects and a composer, with a clock."""

    def __init__(self, config: StreamsConfig = SERVICES, memory: Memory | None = None) -> None:
        read = (
            LoadBalancerEndpointSliceReader(GatewayName.parse("gateway-a"))
            if config.numbered
            else EndpointSliceReader(config.streams)
        )
        self.now = 100.0
        self.objects = Objects(read)
        self.composer = Composer(config, memory)

    def put(self, *objects: Object) -> Composed:
        for each in objects:
            self.objects.put(each)
        return self.compose()

    def delete(self, *objects: Object) -> Composed:
        for each in objects:
            self.objects.remove(each)
        return self.compose()

    def compose(self, after_s: float = 0.0) -> Composed:
        self.now += after_s
        return self.composer.compose(self.objects.by_stream(), self.now, 70.0)


def targets(composed: Composed, stream: str = "web") -> dict[int, str]:
    """Return the last byte of the first address by identifier."""
    (found,) = [each for each in composed.streams if each.name == stream]
    return {each.identifier: "abc"[each.ips[0][-1] - 1] for each in found.targets}


def reasons(composed: Composed) -> list[str]:
    return [each.reason.value for each in composed.skipped]


def test_services_are_streams_even_without_an_endpoint() -> None:
    vip = parse_prefix("20.0.0.1/32")
    web, dns = World(replace(SERVICES, vips={"web": (vip,)})).compose().streams
    assert (web.name, web.vips, web.max_targets, web.identifier_offset, web.targets) == ("web", (vip,), 10, 5000, ())
    assert (dns.name, dns.vips, dns.identifier_offset, dns.shm_name, dns.first_identifier) == (
        "dns",
        (),
        5010,
        "tshm-dns",
        1,
    )


def test_groups_are_streams_as_meridio_2_makes_them() -> None:
    composed = World(GROUPS).put(
        group_slice("group-b", member("a", 0, "10.0.0.1")), group_slice("group-a", member("b", 9, "10.0.0.2"))
    )
    assert [
        (each.name, each.shm_name, each.first_identifier, each.identifier_offset, each.targets[0].identifier)
        for each in composed.streams
    ] == [("group-a", "group-a", 0, 5000, 9), ("group-b", "group-b", 0, 5010, 0)]


def test_several_slices_of_a_group_are_one_stream() -> None:
    world = World(GROUPS)
    composed = world.put(
        group_slice("web", member("a", 0, "10.0.0.1"), name="one"),
        group_slice("web", member("b", 1, "10.0.0.2"), name="two"),
    )
    assert targets(composed) == {0: "a", 1: "b"}
    assert targets(world.delete(group_slice("web", name="one"))) == {1: "b"}


def test_the_first_identifiers_are_in_the_order_of_addresses() -> None:
    assert targets(World().put(service_slice("web", C, A, B))) == {1: "a", 2: "b", 3: "c"}


def test_one_that_leaves_is_gone_at_once_and_its_identifier_rests() -> None:
    world = World()
    world.put(service_slice("web", A, B))
    assert targets(world.put(service_slice("web", B))) == {2: "b"}
    assert targets(world.put(service_slice("web", B, C))) == {2: "b", 3: "c"}


def test_all_at_once_wait_and_then_go() -> None:
    world = World()
    world.put(service_slice("web", A, B))
    assert targets(world.delete(service_slice("web"))) == {1: "a", 2: "b"}
    assert (world.composer.waits, world.composer.settles_at) == (2, world.now + 60)
    assert targets(world.compose(after_s=59)) == {1: "a", 2: "b"}
    assert targets(world.compose(after_s=1)) == {}
    assert world.composer.waits == 0


def test_those_that_return_one_by_one_meanwhile_lose_none() -> None:
    world = World()
    world.put(service_slice("web", A, B))
    world.put(service_slice("web"))
    assert targets(world.put(service_slice("web", B))) == {1: "a", 2: "b"}
    assert world.composer.waits == 1
    assert targets(world.put(service_slice("web", A, B))) == {1: "a", 2: "b"}
    assert world.composer.settles_at is None


def test_a_newcomer_with_the_address_of_one_that_waits_takes_its_place() -> None:
    world = World()
    world.put(service_slice("web", A, B))
    world.put(service_slice("web"))
    composed = world.put(service_slice("web", endpoint("new", "10.0.0.1")))
    assert targets(composed) == {2: "b", 3: "a"}


def test_an_empty_first_list_is_believed_at_once() -> None:
    assert targets(World().put(service_slice("web"))) == {}


def test_an_empty_first_list_waits_when_an_earlier_run_knew_targets() -> None:
    memory = World().put(service_slice("web", A, B)).memory
    world = World(memory=memory)
    assert targets(world.compose()) == {1: "a", 2: "b"}
    assert targets(world.compose(after_s=60)) == {}


def test_a_group_whose_object_is_deleted_goes_after_its_wait() -> None:
    world = World(GROUPS)
    world.put(group_slice("web", member("a", 0, "10.0.0.1")))
    assert targets(world.delete(group_slice("web"))) == {0: "a"}
    composed = world.compose(after_s=60)
    assert composed.streams == ()
    assert composed.memory == {}
    assert [each.name for each in world.put(group_slice("other", member("a", 0, "10.0.0.1"))).streams] == ["other"]


def test_no_wait_where_it_is_turned_off() -> None:
    world = World(replace(SERVICES, settle_s=0.0))
    world.put(service_slice("web", A, B))
    assert targets(world.put(service_slice("web"))) == {}


def test_an_endpoint_that_cannot_be_used_keeps_what_it_had() -> None:
    world = World()
    world.put(service_slice("web", A, B))
    bad = {**A, "addresses": ["broken"]}
    assert targets(world.put(service_slice("web", bad, B, C))) == {1: "a", 2: "b", 3: "c"}
    assert [each.reason.value for each in world.objects.skipped] == ["bad_address"]
    assert targets(world.put(service_slice("web", B, C))) == {2: "b", 3: "c"}
    assert world.objects.skipped == ()


def test_an_object_that_cannot_be_read_keeps_what_it_had_and_harms_no_other() -> None:
    world = World()
    world.put(service_slice("web", A, name="one"), service_slice("web", B, name="two"))
    broken: dict[str, Any] = {**service_slice("web", name="one"), "endpoints": 7}
    assert targets(world.put(broken, service_slice("web", C, name="two"))) == {1: "a", 3: "c"}
    assert ["object 'one'" in each.what for each in world.objects.skipped] == [True]
    world.objects.replace([service_slice("web", C, name="two")])
    assert world.objects.skipped == ()
    assert targets(world.compose()) == {3: "c"}


def test_an_identifier_that_two_claim_stays_with_the_one_that_had_it() -> None:
    world = World(GROUPS)
    world.put(group_slice("web", member("b", 0, "10.0.0.2"), member("c", 1, "10.0.0.3")))
    composed = world.put(
        group_slice("web", member("a", 0, "10.0.0.1"), member("b", 0, "10.0.0.2"), member("c", 0, "10.0.0.3"))
    )
    assert targets(composed) == {0: "b", 1: "c"}  # a is new and gets nothing, c keeps what it had
    assert reasons(composed) == ["duplicate_identifier"] * 2


def test_one_that_drains_leaves_its_identifier_to_its_successor() -> None:
    world = World(GROUPS)
    world.put(group_slice("web", member("a", 0, "10.0.0.1")))
    composed = world.put(group_slice("web", member("a", 0, "10.0.0.1", ready=False), member("b", 0, "10.0.0.2")))
    assert targets(composed) == {0: "b"}


def test_an_identifier_out_of_range_is_refused_by_name() -> None:
    composed = World(GROUPS).put(group_slice("web", member("a", 10, "10.0.0.1"), member("b", 9, "10.0.0.2")))
    assert targets(composed) == {9: "b"}
    assert reasons(composed) == ["identifier_out_of_range"]
    assert composed.skipped[0].what == "target 'a' of web: 10 is outside 0 to 9"


def test_two_targets_with_one_address() -> None:
    world = World()
    world.put(service_slice("web", B))
    composed = world.put(service_slice("web", endpoint("other", "10.0.0.2"), B))
    assert targets(composed) == {1: "b"}
    assert reasons(composed) == ["duplicate_address"]


def test_the_surplus_is_refused_by_name() -> None:
    world = World(replace(SERVICES, max_targets=2))
    world.put(service_slice("web", B, C))
    composed = world.put(service_slice("web", A, B, C))
    assert targets(composed) == {1: "b", 2: "c"}
    assert reasons(composed) == ["no_identifier_left"]
    assert composed.skipped[0].what == "target 'a' of web: all 2 are taken"


def test_a_pod_that_is_made_again_is_another_target() -> None:
    world = World()
    world.put(service_slice("web", A, B))
    composed = world.put(service_slice("web", endpoint("a2", "10.0.0.3"), B))
    assert targets(composed) == {2: "b", 3: "c"}


def test_marks_stay_with_their_streams_over_a_restart() -> None:
    memory = World().put(service_slice("web", A), service_slice("dns", B)).memory
    later = StreamsConfig(streams=("new", "dns", "web"), max_targets=10)
    composed = World(later, memory).put(service_slice("web", A), service_slice("dns", B))
    assert {each.name: each.identifier_offset for each in composed.streams} == {"web": 5000, "dns": 5010, "new": 5020}


def test_marks_of_another_size_are_not_taken_over() -> None:
    memory = World().put(service_slice("web", A), service_slice("dns", B)).memory
    composed = World(replace(SERVICES, max_targets=20), memory).put(service_slice("web", A), service_slice("dns", B))
    assert {each.name: each.identifier_offset for each in composed.streams} == {"web": 5000, "dns": 5020}
    assert targets(composed) == {1: "a"}


def test_a_memory_of_streams_that_are_not_set_any_more_is_forgotten() -> None:
    memory = World().put(service_slice("web", A), service_slice("dns", B)).memory
    world = World(StreamsConfig(streams=("dns",), max_targets=10), memory)
    assert [each.name for each in world.put(service_slice("dns", B)).streams] == ["dns"]
    assert world.composer.remembered().keys() == {"dns"}


def test_the_list_of_an_earlier_run_without_the_server() -> None:
    memory = World().put(service_slice("web", A, endpoint("b", "10.0.0.2", ready=False))).memory
    world = World(memory=memory)
    composed = world.composer.compose(world.composer.remembered(), world.now, 70.0)
    (web, _) = composed.streams
    assert [(each.identifier, each.ips, each.draining) for each in web.targets] == [
        (1, (parse_ip("10.0.0.1"),), False),
        (2, (parse_ip("10.0.0.2"),), True),
    ]
    assert targets(world.put(service_slice("web", B))) == {2: "b"}
