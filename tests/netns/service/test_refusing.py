"""What keeps the service from starting is said in one line that names the setting, and the exit status is 1."""

import socket
from pathlib import Path

import pytest

from tests.netns.service.guarded import Guarded, Process, wait_until

pytestmark = pytest.mark.netns


def refusal(process: Process) -> str:
    """Start a service that must not come up; return all that it said of the reason."""
    process.start()
    assert process.wait_for_end() == 1
    lines = process.log("cannot start") + [line for line in process.log("host") if line["level"] == "error"]
    assert lines, "it said nothing"
    assert not process.log("exception")
    return " ".join(str(line.get("reason") or line.get("what")) for line in lines)


def test_two_instances(guarded: Guarded) -> None:
    with guarded.service():
        before = guarded.everything()
        second = guarded.process({"LBGUARD_SOCKET": str(guarded.directory / "other.sock")})
        assert "another lbguard runs in this network namespace" in refusal(second)
        assert guarded.everything() == before
        assert guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")


def test_two_instances_that_start_at_once(guarded: Guarded) -> None:
    """Neither sees the other when it looks at the host: the lock decides, and one of them serves."""
    sockets = [str(guarded.directory / f"{n}.sock") for n in range(2)]
    both = [guarded.process({"LBGUARD_SOCKET": path, "LBGUARD_METRICS__LISTEN": ""}) for path in sockets]
    for process in both:
        process.start()
    wait_until(lambda: any(p.process is not None and p.process.poll() is not None for p in both), "one gives up")
    [loser] = [process for process in both if process.process is not None and process.process.poll() is not None]
    assert loser.wait_for_end() == 1
    [winner] = [process for process in both if process is not loser]
    winner.wait_for_log("ready")
    assert winner.terminate() == 0


def test_the_port_is_taken(guarded: Guarded) -> None:
    with guarded.lb.entered(), socket.create_server(("127.0.0.1", 9464)):
        assert "metrics.listen = 127.0.0.1:9464" in refusal(guarded.process())
        assert not guarded.socket.exists()


def test_the_socket_is_served_by_somebody_else(guarded: Guarded) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(guarded.socket))
        other.listen()
        said = refusal(guarded.process())
    assert f"socket = {guarded.socket}" in said
    assert guarded.socket.exists(), "the socket of another is not ours to remove"


def test_the_path_of_the_socket_is_taken_by_a_file(guarded: Guarded) -> None:
    guarded.socket.write_text("precious")
    assert f"socket = {guarded.socket}" in refusal(guarded.process())
    assert guarded.socket.read_text() == "precious"


def test_the_socket_of_a_dead_process_is_no_obstacle(guarded: Guarded) -> None:
    with guarded.service() as service:
        service.kill()
    assert guarded.socket.exists()
    with guarded.service():
        assert guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")


@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_without_a_capability(guarded: Guarded, capability: str) -> None:
    process = guarded.process()
    process.command = ("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}", *Process.command)
    before = guarded.everything()
    assert f"capability {capability.upper()} is missing" in refusal(process)
    assert guarded.everything() == before


def test_the_directory_of_the_socket_vanishes(guarded: Guarded, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "deep"
    with guarded.service({"LBGUARD_SOCKET": str(directory / "api.sock")}, admitted=4) as service:
        assert (directory / "api.sock").exists()
        (directory / "api.sock").unlink()
        directory.rmdir()
        guarded.delete_link("nse-a")
        service.wait_for_log("withdraw", count=2)
        wait_until((directory / "api.sock").is_socket, "the socket is back")
        wait_until(lambda: guarded.http("/readyz")[0] == 200, "ready")
        assert service.terminate() == 0
        assert service.log("stopped")
