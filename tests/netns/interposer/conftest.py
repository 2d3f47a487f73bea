from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbguard.lab.netns import Namespace
from tests.fakes.interposed import MISSING, REAL, Interposed
from tests.fakes.nfqlb import install_nfqlb
from tests.netns.interposer.balancer import SHM, Balancer


@pytest.fixture
def kind() -> type[Balancer]:
    """The kind of load balancer."""
    return Balancer


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.nfqlb)])
def balancer(
    request: pytest.FixtureRequest,
    make_namespace: Callable[[str], Namespace],
    tmp_path: Path,
    kind: type[Balancer],
) -> Iterator[Balancer]:
    """A load balancer with two links and no target; no service runs yet. On a stand-in for nfqlb, and on the real."""
    if MISSING:
        pytest.skip(MISSING)
    lb = make_namespace("lb")
    stream = f"{lb.name}-{request.node.name.partition('[')[0][-30:]}".replace("_", "-")
    if request.param == "real":
        if not REAL.exists():
            pytest.skip("no nfqlb on PATH (github.com/Nordix/nfqueue-loadbalancer)")
        real, shm_dir = REAL, SHM
    else:
        # On a tmpfs, as /dev/shm is.
        home, shm_dir = tmp_path / "real", SHM / f"test-{stream}"
        home.mkdir()
        shm_dir.mkdir()
        real = install_nfqlb(home, shm_dir)
    made = kind(lb, make_namespace("px"), Interposed(tmp_path / "container", real), stream, shm_dir, tmp_path)
    yield made
    made.close()
    (shm_dir / f"{kind.shm_prefix}{stream}").unlink(missing_ok=True)
    if shm_dir != SHM:
        shm_dir.rmdir()
