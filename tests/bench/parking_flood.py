"""Sends one UDP flow to the VIP with ready-made frames, evenly paced, until it is killed.

Run it in the client's namespace: `python -m tests.bench.parking_flood LINK ITS_MAC GATEWAY_MAC PORT PER_MILLISECOND`.
"""

import sys
import time

from lbguard.lab.netns import CurrentNamespace
from tests.bench.packet_flood import Flood
from tests.netns.distributor.packets import UDP, Flow, flow_packet

SOURCE, VIP, PORT = "10.0.0.2", "20.0.0.1", 4000
_DATA = bytes(64)
_IPV4 = b"\x08\x00"


def main() -> None:
    """Send what is due each millisecond; what was missed is not made up for."""
    link, mac, gateway, port, count = sys.argv[1:]
    packet = flow_packet(Flow(SOURCE, VIP, UDP, int(port), PORT), _DATA)
    frame = bytes.fromhex((gateway + mac).replace(":", "")) + _IPV4 + packet
    with Flood(CurrentNamespace(), link, [frame] * int(count)) as flood:
        due = time.monotonic()
        while True:
            flood.send(int(count))
            due = max(due + 0.001, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
