"""Links, addresses, routes, rules and neighbour entries as the kernel's dumps show them."""

from typing import NamedTuple


class Link(NamedTuple):
    """A link. `up` is what was set; `running`: it has a carrier too; `operational`: and the kernel sends on it."""

    ifindex: int
    name: str
    mac: str
    up: bool
    running: bool
    operational: bool
    mtu: int
    master: int | None


class Address(NamedTuple):
    """An address of a link; `peer` is empty where there is none."""

    link: str
    ip: str
    prefix_length: int
    peer: str
    scope: int
    flags: int


class Route(NamedTuple):
    """A route. `destination` is `default` or a prefix; `gateway` and `link` may be empty."""

    table: int
    ipv4: bool
    destination: str
    kind: str
    gateway: str
    link: str
    metric: int
    protocol: int
    next_hops: tuple[str, ...]


class Rule(NamedTuple):
    """A routing rule; `mark` is 0 where it names none."""

    ipv4: bool
    mark: int
    table: int
    priority: int
    protocol: int


class Neighbor(NamedTuple):
    """A neighbour entry."""

    ip: str
    link: str
    mac: str
    state: str
    flags: int
    protocol: int
