"""Requests by the library: messages that it lacks."""

import subprocess
import sys


def test_neighbour_timers_are_complete_in_a_process_that_used_the_librarys_message_first() -> None:
    done = subprocess.run([sys.executable, "-c", _LIBRARY_FIRST], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["NDTPA_IFINDEX=7", "NDTPA_MCAST_REPROBES=5"]


_LIBRARY_FIRST = """
from pyroute2.netlink.rtnl.ndtmsg import ndtmsg
from lbguard.kernel.requests import _NeighborTable

def encoded(kind, *attributes):
    message = kind()
    message["attrs"] = [("NDTA_PARMS", {"attrs": attributes})]
    message.encode()
    return bytes(message.data)

encoded(ndtmsg, ("NDTPA_IFINDEX", 7))
read = _NeighborTable(encoded(_NeighborTable, ("NDTPA_IFINDEX", 7), ("NDTPA_MCAST_REPROBES", 5)))
read.decode()
for name, value in read.get_attr("NDTA_PARMS")["attrs"]:
    print(f"{name}={value}")
"""
