"""The list of targets while the service runs: replaced, edited, broken, away."""

import pytest

from tests.netns.service.guarded import Guarded, stream, targets_yaml, wait_until

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
