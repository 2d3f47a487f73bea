"""A monitor's namespace and that of whom it pings, joined by a link, dual stack."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lbguard.core.addr import Ip, parse_ip
from lbguard.lab.netns import Namespace, connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Both namespaces. `eth0` is the link of each; `ours` and `theirs` are its addresses, IPv4 and IPv6."""

    near: Namespace
    far: Namespace
    ours: tuple[Ip, Ip] = (parse_ip("10.7.0.1"), parse_ip("fd07::1"))
    theirs: tuple[Ip, Ip] = (parse_ip("10.7.0.2"), parse_ip("fd07::2"))

    def join(self) -> None:
        """Make the link, with addresses on both ends."""
        connect(self.near, "eth0", self.far, "eth0")
        for end, number in ((self.near, 1), (self.far, 2)):
            end.add_addresses("eth0", f"10.7.0.{number}/24", f"fd07::{number}/64")

    def drop(self, rule: str) -> None:
        """Have the far end drop what matches an nftables rule."""
        self.far.run("nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; }")
        self.far.run("nft", f"add rule inet cut in {rule} drop")

    def pass_all(self) -> None:
        """Have the far end drop nothing any more."""
        self.far.run("nft", "delete table inet cut")


@pytest.fixture
def ends(make_namespace: Callable[[str], Namespace]) -> Ends:
    """Make two joined namespaces."""
    ends = Ends(near=make_namespace("near"), far=make_namespace("far"))
    ends.join()
    return ends
