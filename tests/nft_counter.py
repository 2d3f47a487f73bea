"""Reading a named counter of nftables in a namespace."""

import json

from lbguard.lab.netns import Namespace


def read_counter(namespace: Namespace, table: str, name: str) -> tuple[int, int]:
    """Return packets and bytes of a counter in a table of family inet."""
    shown = json.loads(namespace.run("nft", "-j", "list", "counter", "inet", table, name))
    (counter,) = [item["counter"] for item in shown["nftables"] if "counter" in item]
    return counter["packets"], counter["bytes"]
