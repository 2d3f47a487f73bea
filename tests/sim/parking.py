"""Runs with parking: packets are kept for targets, and none may reach a target for which it was not meant.

The packets and their fate are modelled at the level of decisions: a packet waits where the real buffer keeps it, and is
given back where that says so. All that is random here comes from a generator of its own.
"""

import functools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lbguard.core import effects as fx
from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.engine_state import TargetView
from lbguard.core.events import NeighborsProbed
from lbguard.core.model import ADMITTED, Condition, ParkingLane, RouteKind
from lbguard.parking.buffer import Bounds, ParkingBuffer
from lbguard.parking.frames import ParkedPacket
from tests.sim.world import Profile, World

SEND_S = 0.25
MAX_AGE_S = 15.0


@dataclass(frozen=True, slots=True)
class Intent:
    """For whom a packet was meant: the address, which life of the guard kept it, and when."""

    ip: Ip
    life: int
    at: float


class ParkingWorld(World):
    """A world in which clients send to every target, and the guard keeps what meets no path."""

    def __init__(self, seed: int, profile: Profile | None = None) -> None:
        self.chance = random.Random(f"packets {seed}")
        self.intents: dict[bytes, Intent] = {}
        self.out_at: dict[tuple[int, bool], float] = {}
        """By mark and family: when its target was out of the table last."""
        self.counts: Counter[str] = Counter()
        super().__init__(seed, profile)
        self.after(SEND_S, self._clients)

    # The guard's side

    def start_guard(self) -> None:
        self.config = replace(self.config, parking=True)
        # What a process kept ends with it.
        self.buffer = ParkingBuffer(Bounds(packets=200, memory_bytes=2**20, max_age_s=MAX_AGE_S))
        self.lanes: dict[tuple[int, bool], ParkingLane] = {}
        super().start_guard()

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.ParkPackets):
                for lane in effect.lanes:
                    self.lanes[lane.mark, lane.ipv4] = lane
                    self.buffer.set_lane(lane)
            elif isinstance(effect, fx.ProbeNeighbors):
                probed = NeighborsProbed(entries=effect.entries)
                self.guards(0.002, functools.partial(self.deliver, probed))
        super()._carry_out(effects)

    def _decide(self) -> None:
        reading = self.now < self._reading_until
        super()._decide()
        # What is told between a crash and the next start reaches nobody.
        if reading or not self.running or not self.engine.running:
            return
        targets = {target.mark: target for target in self.engine.targets()}
        unadopted = {stream.spec.name for stream in self.engine.streams() if not stream.adopted}
        for mark, ipv4 in self.lanes:
            target = targets.get(mark)
            if target is None:
                self.out_at[mark, ipv4] = self.now
            elif target.key.stream not in unadopted:
                withdrawn = any(path.withdrawn for ip, path in target.paths.items() if is_ipv4(ip) is ipv4)
                if target.state not in ADMITTED or withdrawn:
                    self.out_at[mark, ipv4] = self.now
        self._give_back(targets)

    def _give_back(self, targets: Mapping[int, TargetView]) -> None:
        """Take what may be given back, and check for whom each packet was meant."""
        for waiting in self.buffer.take(self.now, 1000, 1000):
            parked = waiting.parked
            intent, target = self.intents[parked.packet], targets.get(parked.mark)
            what = f"a packet of {parked.mark}, kept at {intent.at:.3f}"
            assert intent.life == self._life, f"{what}, outlived its process"
            assert target is not None, f"{what}, was given back to no target"
            assert target.state in ADMITTED, f"{what}, was given back to a target that is {target.state}"
            assert intent.ip in target.paths, f"{what}, was given back to another address"
            out_at = self.out_at.get((parked.mark, parked.ipv4), 0.0)
            assert out_at <= intent.at, f"{what}, was given back after its target was out at {out_at:.3f}"
            path = target.paths[intent.ip]
            assert path.condition is Condition.OK, f"{what}, was given back to a path that is {path.condition}"
            assert not path.withdrawn, f"{what}, was given back to a withdrawn family"
            assert self.now - intent.at <= MAX_AGE_S, f"{what}, is too old"
            self.counts["given back"] += 1

    # The clients' side

    def _clients(self) -> None:
        self.after(SEND_S, self._clients)
        if not self.running or not self.engine.running or self._stalled_since is not None:
            return
        routed = {(r.table, r.ipv4) for r in self.kernel.routes.values() if r.kind is RouteKind.UNICAST}
        for target in self.engine.targets():
            for ip in target.paths:
                if self.chance.random() < 0.5:
                    self._send(target, ip, routed=(target.mark, is_ipv4(ip)) in routed)

    def _send(self, target: TargetView, ip: Ip, *, routed: bool) -> None:
        """A client's packet meets the parking link where the target has no route of its own, or one precedes that."""
        lane = self.lanes.get((target.mark, is_ipv4(ip)))
        if target.state not in ADMITTED or (routed and not (lane and lane.divert)):
            return
        self.counts["sent"] += 1
        # As long as an IPv6 header; the protocol in it is none that reacts to loss.
        packet = self.counts["sent"].to_bytes(40)
        self.intents[packet] = Intent(ip, self._life, self.now)
        self.buffer.put(ParkedPacket(target.mark, is_ipv4(ip), packet), self.now)
