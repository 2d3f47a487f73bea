"""Recordings of format version 1, as they were written before drains and families: the rows stand here as text."""

import gzip
import json
from pathlib import Path

import pytest

from lbguard.core.model import Decision, TargetState
from lbguard.recording.format import VERSION
from lbguard.recording.reader import Began, Decided, find_files, read_file, read_header
from lbguard.recording.replay import replay, state_at
from lbguard.recording.show import report_text
from lbguard.tuning.tune import tune

TYPES = {
    "EngineConfig": [
        *("grace", "freeze", "damping", "evidence", "availability_grace_s", "soft_budget", "observe"),
        *("superseded_link_down", "excluded_links", "neighbor_probe_interval_s", "neighbor_failures_needed"),
        *("tune_neighbors", "solicit_neighbors", "retry_min_s", "retry_max_s", "manages_paths", "affinity"),
    ],
    "GraceConfig": ["window_s", "max_s", "by_cause_s", "adaptive", "adaptive_quantile"],
    "FreezeConfig": ["threshold", "limit_s"],
    "DampingConfig": ["half_life_s", "step_s", "max_s"],
    "EvidenceConfig": ["confirm_k", "confirm_n", "veto_window_s", "opinions_max", "remembered_max"],
    "LinkSeen": ["ifindex", "name", "up", "mac", "admin_up"],
    "AddressSeen": ["ifindex", "ip", "prefix_length", "usable", "peer"],
    "SourceSnapshot": ["streams"],
    "StreamSpec": ["name", "max_targets", "identifier_offset", "vips", "shm_name", "targets"],
    "TargetSpec": ["identifier", "ips"],
    "RoutesProgrammed": ["added", "deleted"],
    "Route": ["table", "ipv4", "kind", "metric", "gateway", "oif", "protocol"],
    "RuleSeen": ["rule"],
    "Rule": ["mark", "ipv4", "table", "priority", "protocol"],
    "DistributorSeen": ["stream", "active"],
    "SetAvailability": ["stream", "available", "reason"],
    "Decision": [
        *("sequence", "at", "target", "action", "state_from", "state_to", "cause", "deadline", "duration_s", "evidence")
    ],
    "TargetKey": ["stream", "identifier"],
    "Evidence": ["ip", "condition", "ifname", "ifindex", "neighbor", "detail", "verdict"],
    "StreamsPruned": [],
    "CommitDone": ["stream", "registered", "active"],
    "LinkGone": ["ifindex"],
}
HEADER = {
    "format": "lbguard-recording",
    "version": 1,
    "lbguard": "0.1.0",
    "core": "e26796bb97d67195",
    "series": "02127dc3",
    "number": 1,
    "begins": "start",
    "now": 100.0,
    "offset": 1e9,
    "lost": 0,
    "facts": {"host": "lb-0"},
    "types": TYPES,
}
ROWS = """\
["EngineConfig",[3.0,30.0,{},false,0.95],[0.5,60.0],[30.0,2.0,30.0],[1,3,2.5,10000,50000],1.0,0.5,false,false,["lo"],\
0.0,2,true,false,0.1,5.0,true,true]
["S"]
["d"]
["LinkSeen",1,"nse-1",true,"020000000001",true]
["AddressSeen",1,"ac100001",24,true,""]
["d"]
["SourceSnapshot",[["stream-a",100,5000,[],"",[[1,["ac10000b"]]]]]]
["d"]
["RoutesProgrammed",[[5001,true,6,4294967295,"",0,152],[5001,false,6,4294967295,"",0,152],\
[5001,true,1,2048,"ac10000b",1,152]],[]]
["RuleSeen",[5001,true,5001,3000,152]]
["RuleSeen",[5001,false,5001,3000,152]]
["DistributorSeen","stream-a",[]]
["d"]
["=",["SetAvailability","stream-a",true,"ok"]]
["=",["Decision",1,100.0,["stream-a",1],"admit","pending","active","path_ok",null,0.0,\
[["ac10000b","ok","nse-1",1,"","",""]]]]
["StreamsPruned"]
["CommitDone","stream-a",[1],[1]]
["d"]
["t",1000000000]
["LinkGone",1]
["d"]
["=",["Decision",2,101.0,["stream-a",1],"hold","active","held","no_link",104.0,1.0,\
[["ac10000b","no_link","",0,"","",""]]]]
["t",1000000000]
["d"]
["=",["SetAvailability","stream-a",false,"no_usable_path"]]
["t",2000000000]
["d"]
["=",["Decision",3,104.0,["stream-a",1],"withdraw","held","withdrawn","no_link",null,3.0,\
[["ac10000b","no_link","",0,"","",""]]]]
["CommitDone","stream-a",[1],[]]
["d"]
"""


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "lbguard-20010909T014820Z-02127dc3-000001.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(HEADER) + "\n" + ROWS).encode()))
    return path


def test_what_was_decided_then_is_read_and_decided_again(recording: Path) -> None:
    assert read_header(recording).version == 1 != VERSION
    decided = [item.said for item in read_file(recording) if isinstance(item, Decided)]
    actions = [said.action.value for each in decided for said in each if isinstance(said, Decision)]
    assert actions == ["admit", "hold", "withdraw"]
    report = replay(find_files([recording]))
    assert report.difference is None
    assert report.core_differs == {"0.1.0"}
    assert "every decision is the same" in report_text(report)


def test_a_change_of_the_list_waited_for_nothing_then(recording: Path) -> None:
    [began] = [item for item in read_file(recording) if isinstance(item, Began)]
    assert began.config.affinity
    assert began.config.learn_s == 0.0
    assert began.config.drain_window_s == 0.0


def test_nothing_drained_then(recording: Path) -> None:
    status = state_at([recording], "+2s").status
    [target] = status.targets
    assert target.state is TargetState.HELD
    assert not target.draining
    assert not any(path.withdrawn for path in target.paths)


def test_it_can_be_tuned_from(recording: Path) -> None:
    report = tune([recording], {"grace.window": ["1s"]})
    assert {result.variant.label: result.cost.withdrawn for result in report.results} == {"1s": 1, "3s": 1}
