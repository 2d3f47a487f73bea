"""Many reporters that say UP of every target, again and again, at an even pace; prints what was answered.

`python -m tests.bench.verdict_flood SOCKET REPORTERS PER_SECOND TARGETS`; it ends when its standard input does. One
line of JSON is printed when the pace is reached, and one at the end.
"""

import asyncio
import json
import sys
import time

import grpc

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.core.addr import format_ip
from lbguard.rpc.channels import REPORTER_KEY
from tests.bench.world import target_ips

_TURNS_PER_S = 10
_LEASE_S = 10.0
_STEADY_AFTER_S = 1.0


class Flood:
    """All reporters of this process."""

    def __init__(self, socket: str, reporters: int, per_second: int, targets: int) -> None:
        self._socket = socket
        self._reporters = reporters
        self._batch = max(1, per_second // (reporters * _TURNS_PER_S))
        self._subjects = [pb.Subject(target_ip=format_ip(target_ips(number)[0])) for number in range(targets)]
        self.answered = 0
        self.ignored = 0
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Report until told to stop."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._reporters):
                group.create_task(self._report(number))

    async def _report(self, number: int) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._socket}") as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            metadata = ((REPORTER_KEY, f"flood-{number}"),)
            stream = stub.Report(metadata=metadata)  # type: ignore[call-arg]  # it is written to
            sequence = place = 0
            # The reporters take turns, so that the pace is even.
            due = time.monotonic() + number / (self._reporters * _TURNS_PER_S)
            while not self.stop.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due + 1 / _TURNS_PER_S, time.monotonic())
                verdicts = []
                for _ in range(self._batch):
                    sequence += 1
                    place = (place + 1) % len(self._subjects)
                    verdicts.append(
                        pb.Verdict(
                            subject=self._subjects[place],
                            state=pb.VERDICT_STATE_UP,
                            generation=1,
                            sequence=sequence,
                            lease_s=_LEASE_S,
                        )
                    )
                await stream.write(pb.ReportRequest(ticket=sequence, verdicts=verdicts))
                answer = await stream.read()
                assert isinstance(answer, pb.ReportResponse), "the service ended the stream"
                self.answered += answer.accepted
                self.ignored += len(answer.ignored)
            await stream.done_writing()


async def _run(socket: str, reporters: int, per_second: int, targets: int) -> None:
    flood = Flood(socket, reporters, per_second, targets)
    task = asyncio.create_task(flood.run())
    await asyncio.sleep(_STEADY_AFTER_S)
    began, before = time.monotonic(), flood.answered
    print(json.dumps({"event": "steady"}), flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await asyncio.wait({task, asyncio.ensure_future(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
    answered, took_s = flood.answered - before, time.monotonic() - began
    flood.stop.set()
    await task
    print(json.dumps({"event": "done", "per_s": answered / took_s, "ignored": flood.ignored}), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], *map(int, sys.argv[2:5])))
