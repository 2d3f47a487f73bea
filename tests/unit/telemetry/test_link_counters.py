"""Counters of links and their names, as the kernel writes them: in bytes."""

import pytest
from pyroute2 import IPRoute

from lbguard.telemetry.link_counters import decode_link_name, encode_link_name, parse_net_dev, read_net_dev

NET_DEV = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
  nsm-1:1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
eth0:1: 5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
broken: 1 2 3
"""  # noqa: E501 (as the kernel writes it)
HEADER = b"".join(NET_DEV.splitlines(keepends=True)[:2])
COUNTS = b": 5 7 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"


def test_the_kernels_table() -> None:
    counters = parse_net_dev(NET_DEV)
    assert counters["nsm-1"] == (1000, 10, 1, 2, 0, 0, 0, 0, 2000, 20, 3, 4, 0, 0, 0, 0)
    assert counters.keys() == {"lo", "nsm-1", "eth0:1"}


@pytest.mark.parametrize("table", [b"", b"one line", b"two\nlines", b"\xff\n" * 9, HEADER + b"x:\ny: 1\nz: a b\n"])
def test_anything_else_is_no_counter_and_no_error(table: bytes) -> None:
    assert parse_net_dev(table) == {}


def test_this_machines_table_agrees_with_netlink() -> None:
    """sysfs would not do: it shows the links of the namespace that it was mounted in."""
    before = parse_net_dev(read_net_dev())
    with IPRoute() as kernel:
        sent = {link.get("ifname"): link.get("stats64")["tx_packets"] for link in kernel.get_links()}
    after = parse_net_dev(read_net_dev())
    assert "lo" in sent
    for name in before.keys() & sent.keys() & after.keys():
        assert before[name][9] <= sent[name] <= after[name][9]


# Each is a name that the kernel takes: what Python takes for the end of a line, a control character, no UTF-8.
@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"a\x1cb", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1b[2J", b"%s", "größe".encode()]
)
def test_a_name_of_any_bytes_has_its_counters_and_no_other_link_loses_its_own(raw: bytes) -> None:
    counters = parse_net_dev(HEADER + raw + COUNTS + b"  nsm-1" + COUNTS)
    assert [(name, values[1]) for name, values in counters.items()] == [(decode_link_name(raw), 7), ("nsm-1", 7)]
    assert encode_link_name(decode_link_name(raw)) == raw
