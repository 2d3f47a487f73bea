import struct

from lbguard.core.addr import parse_ip
from lbguard.core.config import EngineConfig
from lbguard.core.engine import Engine
from lbguard.core.events import AddressSeen, LinkSeen, SourceSnapshot
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.telemetry.metrics.interface_counts import InterfaceTotals, LinkLabels, labels_of

NET_DEV = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
  nsm-1:1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
eth0:1: 5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
broken: 1 2 3
"""  # noqa: E501 (as the kernel writes it)

LINK = LinkLabels("nsm-1", "02:00:00:00:00:01", "172.16.0.1/24,fd00::1/64")


def test_series_have_the_labels_of_meridio() -> None:
    totals = InterfaceTotals({"trench": "trench-a", "conduit": "lb"}, lambda: NET_DEV)
    totals.follow((LINK, LinkLabels("gone", "02:00:00:00:00:02", "")))
    samples = [sample for family in totals.collect() for sample in family.samples]
    assert {sample.name: sample.value for sample in samples} == {
        "lbguard_interface_rx_bytes_total": 1000,
        "lbguard_interface_rx_packets_total": 10,
        "lbguard_interface_rx_errors_total": 1,
        "lbguard_interface_rx_dropped_total": 2,
        "lbguard_interface_tx_bytes_total": 2000,
        "lbguard_interface_tx_packets_total": 20,
        "lbguard_interface_tx_errors_total": 3,
        "lbguard_interface_tx_dropped_total": 4,
    }
    labels = {
        "trench": "trench-a",
        "conduit": "lb",
        "interface_name": "nsm-1",
        "mac_address": "02:00:00:00:00:01",
        "ips": "172.16.0.1/24,fd00::1/64",
    }
    assert all(sample.labels == labels for sample in samples)


def test_only_links_that_face_targets_are_followed() -> None:
    engine = Engine(EngineConfig(excluded_links=("lo",)))
    target = TargetSpec(identifier=1, ips=(parse_ip("172.16.0.10"),))
    engine.observe(SourceSnapshot(streams=(StreamSpec(name="stream-a", targets=(target,)),)), 0.0)
    for ifindex, name, up, address in (
        (2, "eth0", True, "192.0.2.1"),
        (3, "nsm-1", True, "172.16.0.1"),
        (4, "nsm-2", False, "172.16.0.2"),
    ):
        engine.observe(LinkSeen(ifindex=ifindex, name=name, up=up, mac=struct.pack(">HI", 0x0200, ifindex)), 0.0)
        engine.observe(AddressSeen(ifindex=ifindex, ip=parse_ip(address), prefix_length=24), 0.0)
    engine.observe(AddressSeen(ifindex=3, ip=parse_ip("fe80::1"), prefix_length=64), 0.0)
    assert labels_of(engine.links_facing_targets()) == (LinkLabels("nsm-1", "02:00:00:00:00:03", "172.16.0.1/24"),)
