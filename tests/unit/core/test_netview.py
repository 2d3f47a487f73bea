"""The view against a naive model: after any sequence of changes, everything equals a recomputation from scratch."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core import events as ev
from lbguard.core.addr import Ip, Prefix, is_link_local, prefix_of
from lbguard.core.model import Condition, LinkKey, NeighborState
from lbguard.core.netview import NetView
from tests.effort import examples
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
    """A link; `order`: how new it is. One whose name is excluded holds addresses, and that is all."""

    generation: int
    order: int
    excluded: bool
    up: bool
    admin_up: bool
    mac: bytes
    addresses: dict[tuple[Ip, int], bool] = field(default_factory=dict)

    def subnets(self) -> set[Prefix]:
        return (
            set()
            if self.excluded
            else {prefix_of(own, length) for own, length in self.addresses if not is_link_local(own)}
        )

    def ready_in(self, subnet: Prefix) -> bool:
        return (
            not self.excluded
            and self.up
            and any(
                usable and not is_link_local(own) and prefix_of(own, length) == subnet
                for (own, length), usable in self.addresses.items()
            )
        )


class Naive:
    """Links by ifindex; every question scans them all.

    `homes`: the subnet that each followed address is reached by, and the order of the link that owned it last.
    """

    def __init__(self) -> None:
        self.all_links: dict[int, NaiveLink] = {}
        self.generation = 0
        self.followed: list[Ip] = []
        self.stripped: dict[Prefix, int] = {}
        self.homes: dict[Ip, tuple[Prefix, int]] = {}

    @property
    def links(self) -> dict[int, NaiveLink]:
        return {ifindex: link for ifindex, link in self.all_links.items() if not link.excluded}

    def follow(self, target: Ip) -> None:
        self.followed.append(target)
        if target not in self.homes:
            held = [subnet for subnet in self.networks(target) if self.holders(subnet)]
            if held:
                self.homes[target] = held[0], max(link.order for link in self.holders(held[0]))

    def unfollow(self, target: Ip) -> None:
        self.followed.remove(target)
        if target not in self.followed:
            self.homes.pop(target, None)

    def apply(self, change: object) -> None:
        held, owned = self.held(), self.owned()
        self._apply(change)
        for target in dict.fromkeys(self.followed):
            for subnet, ifindex in sorted(self.held() - held, reverse=True, key=lambda new: new[0].length):
                if subnet in self.networks(target):
                    self.homes.setdefault(target, (subnet, self.all_links[ifindex].order))
            for subnet, order in sorted(self.owned().items(), key=lambda new: new[0].length):
                if owned.get(subnet) != order and subnet in self.networks(target):
                    home, last = self.homes.get(target, (subnet, order))
                    better = subnet.length >= home.length
                    if better or (self.owner_order(home) is None and order >= last):
                        self.homes[target] = subnet, order

    def held(self) -> set[tuple[Prefix, int]]:
        return {(subnet, ifindex) for ifindex, link in self.links.items() for subnet in link.subnets()}

    def owned(self) -> dict[Prefix, int]:
        orders = {subnet: self.owner_order(subnet) for subnet, _ in self.held()}
        return {subnet: order for subnet, order in orders.items() if order is not None}

    def owner_order(self, subnet: Prefix) -> int | None:
        return max((link.order for link in self.links.values() if link.ready_in(subnet)), default=None)

    def networks(self, target: Ip) -> list[Prefix]:
        return [prefix_of(target, n) for n in range(len(target) * 8, -1, -1)]

    def _apply(self, change: object) -> None:
        if isinstance(change, ev.LinkSeen):
            self._link(change)
        elif isinstance(change, ev.LinkGone):
            if self.all_links.pop(change.ifindex, None):
                self.stripped = {s: i for s, i in self.stripped.items() if i != change.ifindex}
        elif isinstance(change, ev.AddressSeen) and change.ifindex in self.all_links:
            link = self.all_links[change.ifindex]
            link.addresses[change.ip, change.prefix_length] = change.usable
            if not link.excluded:
                self.stripped.pop(prefix_of(change.ip, change.prefix_length), None)
        elif isinstance(change, ev.AddressGone) and change.ifindex in self.all_links:
            link = self.all_links[change.ifindex]
            if link.addresses.pop((change.ip, change.prefix_length), None) is None or link.excluded:
                return
            subnet = prefix_of(change.ip, change.prefix_length)
            wanted = any(subnet in self.networks(target) for target in self.followed)
            if wanted and not is_link_local(change.ip) and not self.holders(subnet):
                self.stripped[subnet] = change.ifindex

    def _link(self, seen: ev.LinkSeen) -> None:
        link = self.all_links.get(seen.ifindex)
        excluded = seen.name == "lo"
        if link is None:
            link = self.all_links[seen.ifindex] = NaiveLink(0, 0, True, False, False, seen.mac)
        if excluded and not link.excluded:
            self.stripped = {s: i for s, i in self.stripped.items() if i != seen.ifindex}
        if link.excluded and not excluded:
            self.generation += 1
            link.generation = link.order = self.generation
        elif link.mac != seen.mac and not excluded:
            self.generation += 1
            link.generation = self.generation
        link.excluded, link.up, link.admin_up, link.mac = excluded, seen.up, seen.admin_up, seen.mac
        if not excluded:
            self.stripped = {s: i for s, i in self.stripped.items() if s not in link.subnets()}

    def holders(self, subnet: Prefix) -> list[NaiveLink]:
        return [link for link in self.links.values() if subnet in link.subnets()]

    def owner(self, subnet: Prefix) -> tuple[LinkKey, int] | None:
        ready = [(link.order, i) for i, link in self.links.items() if link.ready_in(subnet)]
        if not ready:
            return None
        order, ifindex = max(ready)
        return LinkKey(ifindex, self.links[ifindex].generation), order

    def locate(self, target: Ip) -> tuple[LinkKey | None, Condition]:
        home, last = self.homes.get(target, (None, 0))
        reason = Condition.NO_LINK
        for subnet in self.networks(target):
            owner = self.owner(subnet)
            if owner is not None:
                if home is None or subnet.length >= home.length or owner[1] >= last:
                    return owner[0], Condition.OK
            elif reason is Condition.NO_LINK:
                holders = self.holders(subnet)
                if holders:
                    down = all(not link.up for link in holders)
                    reason = Condition.LINK_DOWN if down else Condition.ADDRESS_TENTATIVE
                elif subnet in self.stripped:
                    reason = Condition.NO_ADDRESS
        return None, reason


def new_view() -> NetView:
    """Return a view whose first full view was empty: every link that follows is newer than the one before."""
    view = NetView(excluded_links=("lo",), failures_needed=2)
    view.replace(ev.KernelSnapshot(), 0.0)
    return view


def apply(view: NetView, naive: Naive, change: object) -> None:
    if isinstance(change, tuple):
        what, target = change
        if what == "add":
            naive.follow(target)
            view.add_ip(target)
        elif target in naive.followed:
            naive.unfollow(target)
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


@examples(300)
@given(st.lists(changes, max_size=40))
def test_ownership_and_conditions_equal_a_recomputation(sequence: list[object]) -> None:
    view, naive = new_view(), Naive()
    for change in sequence:
        apply(view, naive, change)
        subnets = {subnet for link in naive.links.values() for subnet in link.subnets()} | view.owners.keys()
        for subnet in subnets:
            owner = view.owners.get(subnet)
            assert (owner.key if owner else None) == (naive.owner(subnet) or (None,))[0]
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


@examples(300)
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


@examples(200)
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
    known = {i for i, link in present.items() if link.name != "lo"}
    assert view.links.keys() == known
    for ifindex, link in view.links.items():
        assert link.up == present[ifindex].up
        assert link.mac == present[ifindex].mac
        assert set(link.addresses) == {(own, prefix_of(own, n)) for i, own, n in addresses if i == ifindex}
    for subnet, owner in view.owners.items():
        newest = max(
            (
                link.order
                for link in view.links.values()
                if link.up and any(held == subnet for own, held in link.addresses if not is_link_local(own))
            ),
        )
        assert owner.order == newest


neighbor_states = st.sampled_from(list(NeighborState))


@examples(300)
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
            if state.name in ("FAILED", "INCOMPLETE"):
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
