"""The real service says that it ends before it ends."""

import os
import signal

import pytest

from tests.netns.service.guarded import Guarded, wait_until

pytestmark = pytest.mark.netns


def test_a_service_that_ends_is_not_ready_and_unavailable_before(guarded: Guarded) -> None:
    with guarded.service({"LBGUARD_AVAILABILITY__LAME_DUCK": "1h"}) as service:
        assert guarded.http("/readyz")[0] == 200
        os.kill(service.pid, signal.SIGTERM)
        service.wait_for_log("unavailable until the stop")
        wait_until(lambda: guarded.http("/readyz")[0] == 503, "not ready")
        assert "stopping" in guarded.http("/readyz")[1]
        # It goes on with its work meanwhile.
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="withdrawn", t3="active")
        # A second signal ends the wait.
        assert service.terminate() == 0


def test_the_wait_before_the_end_ends(guarded: Guarded) -> None:
    with guarded.service({"LBGUARD_AVAILABILITY__LAME_DUCK": "300ms"}) as service:
        assert service.terminate() == 0
        [log] = service.log("unavailable until the stop")
        [stop] = service.log("stopping")
        assert stop["ts"] - log["ts"] >= 0.3


def test_readiness_may_follow_availability(guarded: Guarded) -> None:
    settings = {"LBGUARD_AVAILABILITY__READYZ": "true", "LBGUARD_AVAILABILITY__QUORUM": "75%"}
    with guarded.service(settings):
        assert guarded.http("/readyz")[0] == 200
        guarded.delete_link("nse-a")
        wait_until(lambda: guarded.http("/readyz")[0] == 503, "not ready below the quorum")
        assert "not_available" in guarded.http("/readyz")[1]
        guarded.make_link("nse-a")
        wait_until(lambda: guarded.http("/readyz")[0] == 200, "ready again")
