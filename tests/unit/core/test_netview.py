"""The view against a naive model: after any sequence of changes, everything equals a recomputation from scratch."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from lbguard.core import events as ev
from lbguard.core.addr import Ip, Prefix, is_link_local, prefix_of
from lbguard.core.model import Condition, LinkKey, NeighborState
from lbguard.core.netview import NetView
from tests.unit.core.harness import ip, mac

TARGETS = [ip(text) for text in ("172.16.0.10", "172.16.0.200", "172.16.1.10", "10.9.9.9", "fd00::10", "fe80::10")]
ADDRESSES = [
    (ip("172.16.0.1"), 24),
    (ip("172.16.0.2"), 24),
    (ip("172.16.0.2"), 25),
    (ip("172.16.1.1"), 24),
    (ip("172.16.0.1"), 16),
    (ip("fd00::1"), 64),
    (ip("fe80::1"), 64),
]
IFINDEXES = (2, 3, 4)

links = st.builds(
    ev.LinkSeen,
    ifindex=st.sampled_from(IFINDEXES),
    name=st.sampled_from(("nse-a", "nse-b", "lo")),
    up=st.booleans(),
    mac=st.sampled_from((mac(1), mac(2))),
    admin_up=st.booleans(),
)
address = st.sampled_from(ADDRESSES)
changes = st.one_of(
    links,
    links,
    st.builds(ev.LinkGone, ifindex=st.sampled_from(IFINDEXES)),
    st.builds(
        lambda i, a, usable: ev.AddressSeen(ifindex=i, ip=a[0], prefix_length=a[1], usable=usable),
        st.sampled_from(IFINDEXES),
        address,
        st.booleans(),
    ),
    st.builds(lambda i, a: ev.AddressGone(ifindex=i, ip=a[0], prefix_length=a[1]), st.sampled_from(IFINDEXES), address),
    st.tuples(st.sampled_from(("add", "remove")), st.sampled_from(TARGETS)),
)


@dataclass
class NaiveLink:
    generation: int
    up: bool
    admin_up: bool
    mac: bytes
    addresses: dict[tuple[Ip, int], bool] = field(default_factory=dict)

    def subnets(self) -> set[Prefix]:
        return {prefix_of(own, length) for own, length in self.addresses if not is_link_local(own)}

    def ready_in(self, subnet: Prefix) -> bool:
        return self.up and any(
            usable and not is_link_local(own) and prefix_of(own, length) == subnet
            for (own, length), usable in self.addresses.items()
        )


class Naive:
    """Links by ifindex; every question scans them all."""

    def __init__(self) -> None:
        self.links: dict[int, NaiveLink] = {}
        self.generation = 0
        self.followed: list[Ip] = []
        self.stripped: dict[Prefix, int] = {}

    def apply(self, change: object) -> None:
        if isinstance(change, ev.LinkSeen):
            self._link(change)
        elif isinstance(change, ev.LinkGone):
            if self.links.pop(change.ifindex, None):
                self.stripped = {s: i for s, i in self.stripped.items() if i != change.ifindex}
        elif isinstance(change, ev.AddressSeen) and change.ifindex in self.links:
            self.links[change.ifindex].addresses[change.ip, change.prefix_length] = change.usable
            self.stripped.pop(prefix_of(change.ip, change.prefix_length), None)
        elif isinstance(change, ev.AddressGone) and change.ifindex in self.links:
            link = self.links[change.ifindex]
            if link.addresses.pop((change.ip, change.prefix_length), None) is None:
                return
            subnet = prefix_of(change.ip, change.prefix_length)
            if not is_link_local(change.ip) and not self.holders(subnet):
                self.stripped[subnet] = change.ifindex

    def _link(self, seen: ev.LinkSeen) -> None:
        link = self.links.get(seen.ifindex)
        if link is None:
            if seen.name == "lo":
                return
            link = self.links[seen.ifindex] = NaiveLink(0, False, False, b"")
        if link.mac != seen.mac:
            self.generation += 1
            link.generation = self.generation
        link.up, link.admin_up, link.mac = seen.up, seen.admin_up, seen.mac

    def holders(self, subnet: Prefix) -> list[NaiveLink]:
        return [link for link in self.links.values() if subnet in link.subnets()]

    def owner(self, subnet: Prefix) -> LinkKey | None:
        ready = [(link.generation, i) for i, link in self.links.items() if link.ready_in(subnet)]
        generation, ifindex = max(ready, default=(0, 0))
        return LinkKey(ifindex, generation) if ready else None

    def locate(self, target: Ip) -> tuple[LinkKey | None, Condition]:
        subnets = [prefix_of(target, n) for n in range(len(target) * 8, -1, -1)]
        for subnet in subnets:
            owner = self.owner(subnet)
            if owner is not None:
                return owner, Condition.OK
        for subnet in subnets:
            holders = self.holders(subnet)
            if holders:
                down = all(not link.up for link in holders)
                return None, Condition.LINK_DOWN if down else Condition.ADDRESS_TENTATIVE
            if subnet in self.stripped:
                return None, Condition.NO_ADDRESS
        return None, Condition.NO_LINK


def new_view() -> NetView:
    return NetView(excluded_links=("lo",), failures_needed=2)


def apply(view: NetView, naive: Naive, change: object) -> None:
    if isinstance(change, tuple):
        what, target = change
        if what == "add":
            naive.followed.append(target)
            view.add_ip(target)
        elif target in naive.followed:
            naive.followed.remove(target)
            view.remove_ip(target)
        return
    naive.apply(change)
    match change:
        case ev.LinkSeen():
            view.link_seen(change)
        case ev.LinkGone():
            view.link_gone(change)
        case ev.AddressSeen():
            view.address_seen(change)
        case ev.AddressGone():
            view.address_gone(change)


@settings(max_examples=300, deadline=None)
@given(st.lists(changes, max_size=40))
def test_ownership_and_conditions_equal_a_recomputation(sequence: list[object]) -> None:
    view, naive = new_view(), Naive()
    for change in sequence:
        apply(view, naive, change)
        subnets = {subnet for link in naive.links.values() for subnet in link.subnets()} | view.owners.keys()
        for subnet in subnets:
            owner = view.owners.get(subnet)
            assert (owner.key if owner else None) == naive.owner(subnet)
        for target in naive.followed:
            link, _, condition = view.locate(target)
            assert (link.key if link else None, condition) == naive.locate(target)
        for ifindex, link_model in naive.links.items():
            for (own, _), _ in link_model.addresses.items():
                usable = any(
                    ok and other == own and not is_link_local(own) for (other, _), ok in link_model.addresses.items()
                )
                key = LinkKey(ifindex, link_model.generation)
                assert view.holds(key, own) == (usable and link_model.up)


@settings(max_examples=300, deadline=None)
@given(st.lists(changes, max_size=40))
def test_every_target_whose_owner_or_condition_changed_is_named(sequence: list[object]) -> None:
    view, naive = new_view(), Naive()
    before: dict[Ip, tuple[LinkKey | None, Condition]] = {}
    for change in sequence:
        apply(view, naive, change)
        named = view.take_changes().ips
        after = {target: naive.locate(target) for target in naive.followed}
        for target, found in after.items():
            # An address that is followed from now on is judged by whoever follows it.
            if target in before and before[target] != found:
                assert target in named, f"{change} moved {target.hex()} from {before[target]} to {found}"
        before = after


@settings(max_examples=200, deadline=None)
@given(
    st.lists(changes, max_size=30),
    st.lists(links, max_size=4),
    st.lists(st.tuples(st.sampled_from(IFINDEXES), address)),
)
def test_a_full_view_leaves_exactly_what_it_holds(
    sequence: list[object], seen: list[ev.LinkSeen], held: list[tuple[int, tuple[Ip, int]]]
) -> None:
    view, naive = new_view(), Naive()
    for change in sequence:
        apply(view, naive, change)
    present = {link.ifindex: link for link in seen}
    addresses = {
        (i, own, length): ev.AddressSeen(ifindex=i, ip=own, prefix_length=length)
        for i, (own, length) in held
        if i in present
    }
    view.replace(ev.KernelSnapshot(links=tuple(present.values()), addresses=tuple(addresses.values())), 0.0)
    known = {i for i, link in present.items() if link.name != "lo" or i in naive.links}
    assert view.links.keys() == known
    for ifindex, link in view.links.items():
        assert link.up == present[ifindex].up
        assert link.mac == present[ifindex].mac
        assert set(link.addresses) == {(own, length) for i, own, length in addresses if i == ifindex}
    for subnet, owner in view.owners.items():
        newest = max(
            (
                link.key.generation
                for link in view.links.values()
                if link.up and any(prefix_of(own, n) == subnet for own, n in link.addresses if not is_link_local(own))
            ),
        )
        assert owner.key.generation == newest


neighbor_states = st.sampled_from(list(NeighborState))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(neighbor_states, st.none()), max_size=20))
def test_failures_in_a_row_last_until_the_address_answers(sequence: list[NeighborState | None]) -> None:
    view, target = new_view(), TARGETS[0]
    view.add_ip(target)
    view.link_seen(ev.LinkSeen(ifindex=2, name="nse-a", up=True, mac=mac(1)))
    failures, known = 0, False
    answered = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT", "NOARP"}
    for state in sequence:
        if state is None:
            view.neighbor_gone(ev.NeighborGone(ifindex=2, ip=target))
        else:
            known = True
            view.neighbor_seen(ev.NeighborSeen(ifindex=2, ip=target, state=state, mac=mac(9)), 0.0)
            if state.name == "FAILED":
                failures += 1
            elif state.name in answered:
                failures = 0
        assert view.neighbor_failed(view.links[2], target) == (known and failures >= 2)


def test_an_address_that_a_replaced_link_had_is_no_address_of_a_link_that_is_gone() -> None:
    view = new_view()
    view.add_ip(TARGETS[0])
    view.link_seen(ev.LinkSeen(ifindex=2, name="nse-a", up=True, mac=mac(1)))
    view.address_seen(ev.AddressSeen(ifindex=2, ip=ip("172.16.0.1"), prefix_length=24))
    view.address_gone(ev.AddressGone(ifindex=2, ip=ip("172.16.0.1"), prefix_length=24))
    assert view.locate(TARGETS[0])[2] is Condition.NO_ADDRESS
    view.take_changes()
    view.link_seen(ev.LinkSeen(ifindex=2, name="nse-a", up=True, mac=mac(2)))
    view.link_gone(ev.LinkGone(ifindex=2))
    assert view.locate(TARGETS[0])[2] is Condition.NO_LINK
    assert TARGETS[0] in view.take_changes().ips
