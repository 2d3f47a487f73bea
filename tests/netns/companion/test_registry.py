"""Source nsp beside a load balancer that gave its own marks: they are read from its routes."""

import asyncio
from pathlib import Path

import pytest

from lbguard.api.client import GuardClient
from tests.fakes.nsp import FakeNsp, stream, target
from tests.netns.companion.beside import MAX_TARGETS, Beside, wait_until
from tests.netns.companion.test_beside import ALL, replace_target_link, wait_for_new_address

pytestmark = pytest.mark.netns


async def test_marks_are_the_load_balancers_and_a_lost_registry_changes_nothing(beside: Beside, tmp_path: Path) -> None:
    registry = FakeNsp()
    registry.configure([stream("stream-a", MAX_TARGETS)])
    registry.put(*(target(place.identifier, place.ipv4, place.ipv6) for place in beside.chain.places))
    address = await registry.start(f"unix:{tmp_path}/nsp.sock")
    settings = {
        "LBGUARD_SOURCE": "nsp",
        "LBGUARD_TARGETS_FILE": "",
        "LBGUARD_NSP__ADDRESS": address,
        "LBGUARD_NSP__TRENCH": "trench-a",
        "LBGUARD_NSP__CONDUIT": "load-balancer",
        # Where a calculation would put the stream; the load balancer put it somewhere else.
        "LBGUARD_NSP__IDENTIFIER_OFFSET_START": "9000",
    }

    def marks() -> dict[int, int]:
        with GuardClient(tmp_path / f"{beside.lb.name}.sock") as client:
            return {each.identifier: each.mark for each in client.status().targets}

    def in_a_guard() -> None:
        with beside.guard(settings) as guard:
            assert marks() == {identifier: 5000 + identifier for identifier in ALL}
            beside.meet(1)
            asyncio.run_coroutine_threadsafe(registry.stop(), loop).result()
            wait_until(lambda: guard.log("the registry tells nothing; the last list stays"), "the loss is told")
            replace_target_link(beside, 1)
            wait_for_new_address(beside, 1)
            assert marks().keys() == set(ALL)
            assert beside.path_changes()["ours"] == 0

    loop = asyncio.get_running_loop()
    try:
        await asyncio.to_thread(in_a_guard)
    finally:
        await registry.stop()
