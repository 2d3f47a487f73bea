"""What a soaked service lives through: links that flap, reporters that chatter, a list that changes, scrapes."""

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import yaml

from lbguard.api.client import GuardClient
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.lab.netns import Namespace, connect
from lbguard.rpc.channels import REPORTER_KEY

STREAMS = 2
METRICS_PORT = 9464
_SIDES = ("a", "b")
_CHATTER_EVERY_S = 0.5
_BATCH = 20
_LEASE_S = 10.0


@dataclass(frozen=True, slots=True)
class SoakTarget:
    """A target: its stream's number, identifier, addresses and the side (0 or 1) whose link leads to it."""

    stream: int
    identifier: int
    side: int
    ipv4: str
    ipv6: str


def soak_targets(count: int) -> list[SoakTarget]:
    """Return dual-stack targets, half of each stream's behind either link."""
    return [
        SoakTarget(
            stream=number // 2 % STREAMS,
            identifier=number // (2 * STREAMS) * 2 + number % 2 + 1,
            side=number % 2,
            ipv4=f"172.{16 + number % 2}.{1 + number // 250}.{1 + number % 250}",
            ipv6=f"fd00:{16 + number % 2}::{number + 16:x}",
        )
        for number in range(count)
    ]


def targets_text(targets: list[SoakTarget]) -> str:
    """Return a targets file."""
    streams = [
        {
            "name": f"stream-{number}",
            "max_targets": 1000,
            "identifier_offset": 5000 + 1000 * number,
            "vips": [f"20.0.0.{number + 1}/32", f"2000::{number + 1:x}/128"],
            "targets": [
                {"identifier": target.identifier, "ips": [target.ipv4, target.ipv6]}
                for target in targets
                if target.stream == number
            ],
        }
        for number in range(STREAMS)
    ]
    return yaml.safe_dump({"streams": streams}, sort_keys=False)


class SoakNet:
    """A load balancer with two links, `nse-a` and `nse-b`, and one namespace that answers for all targets."""

    def __init__(self, targets: list[SoakTarget]) -> None:
        self._targets = targets

    @contextlib.contextmanager
    def built(self) -> Iterator["SoakNet"]:
        """Make the namespaces, and remove them in the end."""
        with Namespace("soak-lb") as self.lb, Namespace("soak-peer") as self.peer:
            for namespace in (self.lb, self.peer):
                for link in ("all", "default"):
                    namespace.sysctl(f"net.ipv6.conf.{link}.accept_dad", "0")
                    namespace.sysctl(f"net.ipv6.conf.{link}.keep_addr_on_down", "1")
            self.lb.sysctl("net.ipv4.ip_forward", "1")
            self.lb.sysctl("net.ipv6.conf.all.forwarding", "1")
            for side in range(len(_SIDES)):
                self.make_link(side)
            yield self

    def name(self, side: int) -> str:
        """Return the name of a side's link."""
        return f"nse-{_SIDES[side]}"

    def make_link(self, side: int) -> None:
        """Make a link and all addresses at its two ends."""
        connect(self.lb, self.name(side), self.peer, f"peer-{_SIDES[side]}")
        targets = [target for target in self._targets if target.side == side]
        addresses = (address for target in targets for address in (f"{target.ipv4}/16", f"{target.ipv6}/64"))
        self.peer.add_addresses(f"peer-{_SIDES[side]}", *addresses)
        self.lb.add_addresses(self.name(side), f"172.{16 + side}.0.254/16", self.address6(side))

    def address6(self, side: int) -> str:
        """Return our IPv6 address on a side's link."""
        return f"fd00:{16 + side}::1/64"

    def set_link(self, side: int, *, up: bool) -> None:
        """Set a link up or down."""
        self.lb.set_link(self.name(side), up=up)

    def delete_link(self, side: int) -> None:
        """Delete a link."""
        self.lb.delete_link(self.name(side))


@dataclass(slots=True)
class Load:
    """All that happens to one service; each method runs until it is cancelled. `done` counts what happened."""

    net: SoakNet
    targets: list[SoakTarget]
    targets_path: Path
    api: Path
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)
    metrics: str = ""

    async def flap(self) -> None:
        """Cut links for a moment or for longer than the window, re-create them, take one family away."""
        while True:
            await asyncio.sleep(self.random.uniform(2.0, 5.0))
            side, kind = self.random.randrange(2), self.random.random()
            gap_s = self.random.uniform(0.1, 1.5) if self.random.random() < 0.8 else self.random.uniform(4.0, 6.0)
            if kind < 0.6:
                down, up = (partial(self.net.set_link, side, up=state) for state in (False, True))
                await self._between("link down", gap_s, down, up)
            elif kind < 0.8:
                remove, remake = partial(self.net.delete_link, side), partial(self.net.make_link, side)
                await self._between("link re-created", gap_s, remove, remake)
            else:
                where = (self.net.name(side), self.net.address6(side))
                lose = partial(self.net.lb.delete_addresses, *where)
                restore = partial(self.net.lb.add_addresses, *where)
                await self._between("IPv6 address away", gap_s, lose, restore)

    async def _between(self, what: str, gap_s: float, begin: Callable[[], object], end: Callable[[], object]) -> None:
        await asyncio.to_thread(begin)
        try:
            await asyncio.sleep(gap_s)
        finally:
            await asyncio.to_thread(end)
        self.done[what] += 1

    async def rewrite(self) -> None:
        """Write the list anew, now and then without a few targets, now and then broken."""
        while True:
            await asyncio.sleep(self.random.uniform(3.0, 7.0))
            left_out = set(self.random.sample(range(len(self.targets)), self.random.choice((0, 0, 1, 3))))
            text = targets_text([target for number, target in enumerate(self.targets) if number not in left_out])
            if self.random.random() < 0.1:
                text = text[: len(text) // 2]
                self.done["targets file half written"] += 1
            new = self.targets_path.with_suffix(".new")
            new.write_text(text)
            new.rename(self.targets_path)
            self.done["targets file"] += 1

    async def scrape(self) -> None:
        """Scrape metrics each second, and ask for the whole status and one explanation every fifth time."""
        while True:
            await asyncio.sleep(1.0)
            self.metrics = await asyncio.to_thread(self._get_metrics)
            self.done["scrape"] += 1
            if self.done["scrape"] % 5 == 0:
                await asyncio.to_thread(self._ask)
                self.done["status and explain"] += 1

    def _get_metrics(self) -> str:
        with self.net.lb.entered():
            connection = socket.create_connection(("127.0.0.1", METRICS_PORT), timeout=30)
        with connection, connection.makefile("rb") as answer:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return answer.read().decode().partition("\r\n\r\n")[2]

    def _ask(self) -> None:
        with GuardClient(self.api, timeout_s=30) as client:
            client.status()
            client.explain("stream-0/1")

    async def report(self, number: int) -> None:
        """One reporter: says UP of all, and at times DOWN or HEALING of a target, or ENDED and begins anew."""
        async with grpc.aio.insecure_channel(f"unix:{self.api}") as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            metadata = ((REPORTER_KEY, f"soak-{number}"),)
            stream = stub.Report(metadata=metadata)  # type: ignore[call-arg]  # it is written to
            generation, sequence, place = 1, 0, number * len(self.targets) // 10
            bad: dict[int, pb.VerdictState.ValueType] = {}
            while True:
                await asyncio.sleep(_CHATTER_EVERY_S * self.random.uniform(0.8, 1.2))
                if self.random.random() < 0.1:
                    state = self.random.choice((pb.VERDICT_STATE_DOWN, pb.VERDICT_STATE_HEALING))
                    bad = {self.random.randrange(len(self.targets)): state} if not bad else {}
                verdicts: list[pb.Verdict] = []
                for _ in range(_BATCH // 2):
                    place = (place + 1) % len(self.targets)
                    sequence += 1
                    verdicts += self._verdicts(place, bad.get(place, pb.VERDICT_STATE_UP), generation, sequence)
                for which, state in bad.items():
                    sequence += 1
                    verdicts += self._verdicts(which, state, generation, sequence)
                await stream.write(pb.ReportRequest(ticket=sequence, verdicts=verdicts))
                answer = await stream.read()
                assert isinstance(answer, pb.ReportResponse), "the service ended the stream"
                self.done["verdicts accepted"] += answer.accepted
                self.done["verdicts ignored"] += len(answer.ignored)
                if self.random.random() < 0.01:
                    generation += 1

    def _verdicts(
        self, place: int, state: "pb.VerdictState.ValueType", generation: int, sequence: int
    ) -> list[pb.Verdict]:
        target = self.targets[place]
        heal_s = 2.0 if state == pb.VERDICT_STATE_HEALING else 0.0
        return [
            pb.Verdict(
                subject=pb.Subject(target_ip=ip),
                state=state,
                generation=generation,
                sequence=sequence,
                lease_s=_LEASE_S,
                heal_s=heal_s,
            )
            for ip in (target.ipv4, target.ipv6)
        ]
