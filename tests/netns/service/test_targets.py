"""The list of targets while the service runs: replaced, edited, broken, away."""

import os
import time

import pytest

from tests.netns.service.guarded import LIMIT_S, Guarded, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns


def test_a_target_comes_and_goes(guarded: Guarded) -> None:
    with guarded.service(targets=targets_yaml(stream("stream-a", 1, 2, 3)), admitted=3):
        before = guarded.data_path()
        guarded.write_targets(targets_yaml())
        guarded.wait_for(t4="active")
        wait_until(lambda: set(guarded.active()) == {1, 2, 3, 4}, "target 4 in the table")
        guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3)), in_place=True)
        wait_until(lambda: 4 not in guarded.states(), "target 4 gone")
        wait_until(lambda: guarded.data_path() == before, "the data path as it was")
        assert guarded.decisions()[-1].action.value == "remove"


def test_a_target_whose_link_is_gone_leaves_at_once(guarded: Guarded) -> None:
    with guarded.service({"LBGUARD_GRACE__WINDOW": "1h", "LBGUARD_GRACE__MAX": "1h"}):
        guarded.delete_link("nse-b")
        guarded.wait_for(t3="held", t4="held")
        guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3)))
        wait_until(lambda: set(guarded.active()) == {1, 2, 3}, "target 4 out of the table")
        wait_until(lambda: "5004" not in str(guarded.rules()) + str(guarded.routes()), "its rules and routes gone")


def test_a_broken_file_leaves_the_last_list(guarded: Guarded) -> None:
    with guarded.service() as service:
        before = guarded.data_path()
        read = len(service.log("targets read"))
        guarded.write_targets("streams: [{name: stream-a, targets: [{identifier: 0")
        service.wait_for_log("targets cannot be read: the last list stays in force")
        wait_until(lambda: guarded.metric("lbguard_source_ok") == 0, "the metric")
        assert guarded.http("/readyz")[0] == 200
        guarded.targets_path.unlink()
        service.wait_for_log("targets cannot be read: the last list stays in force", count=2)
        assert guarded.data_path() == before
        guarded.write_targets(targets_yaml())
        service.wait_for_log("targets read", count=read + 1, streams=1, targets=4)
        wait_until(lambda: guarded.metric("lbguard_source_ok") == 1, "the metric")
        assert guarded.data_path() == before


def test_a_hang_up_reads_the_file_again(guarded: Guarded) -> None:
    with guarded.service() as service:
        read = len(service.log("targets read"))
        before = guarded.data_path()
        service.hang_up()
        service.wait_for_log("targets read", count=read + 1)
        assert guarded.data_path() == before


def test_a_pause_in_the_middle_of_writing_takes_no_target_away(guarded: Guarded) -> None:
    with guarded.service() as service:
        whole = targets_yaml()
        half = whole.splitlines(keepends=True)[: len(whole.splitlines()) // 2]
        with guarded.targets_path.open("w") as file:
            file.write("".join(half))
            file.flush()
            time.sleep(1.5)
            file.write(whole.removeprefix("".join(half)))
        time.sleep(1.0)
        assert not service.log("remove")
        guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3)), in_place=True)
        wait_until(lambda: 4 not in guarded.states(), "a file that is still counts")


@pytest.mark.parametrize(
    "content",
    [
        "streams: " + "[" * 4_000_000,
        "streams: !!timestamp x",
        "streams: [{name: stream-a, identifier_offset: !!int ''}]",
        "a: &a [x, x]\nstreams: [*a, *a]",
        "\x1b[31m: 1",
    ],
    ids=["brackets", "timestamp", "number", "alias", "control"],
)
def test_no_content_ends_the_service(guarded: Guarded, content: str) -> None:
    with guarded.service() as service:
        before = guarded.data_path()
        guarded.write_targets(content)
        service.wait_for_log("targets cannot be read: the last list stays in force")
        guarded.write_targets(targets_yaml())
        wait_until(lambda: guarded.metric("lbguard_source_ok") == 1, "the metric")
        assert guarded.data_path() == before
        assert service.terminate() == 0


def test_a_fifo_in_place_of_the_file_is_told_got_over_and_keeps_nobody_from_stopping(guarded: Guarded) -> None:
    def put_fifo() -> None:
        beside = guarded.targets_path.with_suffix(".fifo")
        os.mkfifo(beside)
        beside.rename(guarded.targets_path)

    with guarded.service() as service:
        put_fifo()
        told = service.wait_for_log("targets cannot be read: the last list stays in force")
        assert "is a FIFO" in told["reason"]
        guarded.targets_path.unlink()
        guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3)))
        wait_until(lambda: 4 not in guarded.states(), "the good list")
        put_fifo()
        service.wait_for_log("targets cannot be read: the last list stays in force", count=2)
        began = time.monotonic()
        assert service.terminate() == 0
        assert time.monotonic() - began < LIMIT_S / 2


def test_a_vip_that_becomes_an_address_of_the_load_balancer_is_told_and_shown(guarded: Guarded) -> None:
    with guarded.service() as service:
        guarded.lb.add_addresses("lo", "20.0.0.1/32")
        said = service.wait_for_log("VIP is local: its packets reach no target")
        assert said["vip"] == "20.0.0.1/32"
        with guarded.client() as client:
            assert client.status().streams[0].local_vips == ("20.0.0.1/32",)
        guarded.lb.delete_addresses("lo", "20.0.0.1/32")
        service.wait_for_log("VIP is local no more")
        guarded.lb.add_route("2000::/64", link="lo", kind="local")
        assert service.wait_for_log("VIP is local: its packets reach no target", count=2)["vip"] == "2000::1/128"


def test_a_missing_file_is_waited_for(guarded: Guarded) -> None:
    process = guarded.process(targets="")
    guarded.targets_path.unlink()
    with process:
        process.wait_for_log("targets cannot be read: the last list stays in force")
        wait_until(guarded.socket.exists, "the API")
        wait_until(lambda: "source_not_read" in guarded.http("/readyz")[1], "the reason why it is not ready")
        assert guarded.http("/healthz")[0] == 200
        guarded.write_targets(targets_yaml())
        process.wait_until_ready()
        process.wait_until_admitted(4)


def test_a_vip_that_changes_moves_no_slot(guarded: Guarded) -> None:
    with guarded.service():
        before = guarded.data_path()
        guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3, 4, vips=["20.0.0.9/32"])))
        wait_until(lambda: "20.0.0.9" in str(guarded.nft("table", "inet", "lbguard")), "the new VIP")
        assert "20.0.0.1" not in str(guarded.nft("table", "inet", "lbguard"))
        assert guarded.data_path() == before


def test_a_stream_comes_and_goes(guarded: Guarded) -> None:
    with guarded.service():
        before, ruleset = guarded.data_path(), len(guarded.nft("table", "inet", "lbguard"))
        other = stream("stream-b", 1, 3, identifier_offset=6000, vips=["20.0.0.2/32"])
        guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3, 4), other))
        wait_until(lambda: "6001" in str(guarded.nft("table", "inet", "lbguard")), "stream-b in the table")
        wait_until(lambda: len(guarded.rules()) == 12, "its rules")
        guarded.write_targets(targets_yaml())
        wait_until(lambda: len(guarded.nft("table", "inet", "lbguard")) == ruleset, "stream-b out of nftables")
        wait_until(lambda: guarded.data_path() == before, "the data path as it was")
