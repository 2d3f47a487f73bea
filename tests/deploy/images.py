"""Building the image with buildah on a base made by debootstrap, and running it with runc as a kubelet would."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.deploy.charts import ROOT

SUITE = "bookworm"
BASE = "localhost/base"
IMAGE = "localhost/lbguard"
UID = 10002
NEEDED = ("buildah", "debootstrap", "runc")


def missing() -> str:
    """Return what this machine lacks for building and running images; empty: nothing."""
    tools = [tool for tool in NEEDED if shutil.which(tool) is None]
    if tools:
        return f"missing: {', '.join(tools)} (apt-get install {' '.join(tools)})"
    # In a user namespace of one user there is no other uid to run as.
    users = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return "" if os.geteuid() == 0 and users > 2**16 else "needs root and its users"


def make_base(cache: Path) -> Path:
    """Return a tar file of a minimal Debian, made once."""
    archive = cache / f"{SUITE}.tar"
    if not archive.exists():
        tree = cache / f"{SUITE}.tree"
        shutil.rmtree(tree, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        try:
            _must("debootstrap", "--variant=minbase", SUITE, tree, timeout_s=300)
            shutil.rmtree(tree / "var/cache/apt/archives")
            unfinished = archive.with_suffix(".part")
            _must("tar", "--create", "--file", unfinished, "--directory", tree, ".")
            unfinished.rename(archive)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
    return archive


def download_wheels(into: Path) -> None:
    """Get the wheels of requirements.lock, so that the build needs no package index."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    lock = ROOT / "requirements.lock"
    _must(*pip, "--require-hashes", "--only-binary", ":all:", "--dest", into, "--requirement", lock)


class Buildah:
    """Buildah with a store of its own and a base image in it.

    Args:
        store: where images and containers are kept.
        archive: a tar file with the base image's files.
    """

    def __init__(self, store: Path, archive: Path) -> None:
        dockerfile = archive.with_name("Dockerfile")
        dockerfile.write_text(f"FROM scratch\nADD {archive.name} /\n")
        # overlay takes a tenth of the time, and does not work on top of every file system.
        for driver in ("overlay", "vfs"):
            place = store / driver
            self._base = ("buildah", "--storage-driver", driver, "--root", place, "--runroot", store / f"run-{driver}")
            try:
                self("bud", "--isolation", "chroot", "--tag", BASE, "--file", dockerfile, archive.parent, timeout_s=120)
                break
            except AssertionError:
                if driver == "vfs":
                    raise

    def __call__(self, *argv: str | Path, timeout_s: float = 60) -> str:
        return _must(*self._base, *argv, timeout_s=timeout_s)

    def build(self, wheels: Path, **arguments: str) -> None:
        """Build the image from this checkout."""
        given = {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"} | arguments
        flags = [flag for name, value in given.items() for flag in ("--build-arg", f"{name}={value}")]
        how = ("--pull=never", "--isolation", "chroot", "--layers=false", "--volume", f"{wheels}:/wheels:ro")
        self("bud", *how, *flags, "--tag", IMAGE, ROOT, timeout_s=400)

    def config(self) -> dict[str, Any]:
        """Return the image's configuration (OCI image specification, `config`)."""
        config = json.loads(self("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
        assert isinstance(config, dict)
        return config

    def tree(self) -> Path:
        """Return a directory with the image's files, for as long as the store is open."""
        return Path(self("mount", self("from", "--pull=never", IMAGE).strip()).strip())

    def close(self) -> None:
        """Unmount and remove all containers."""
        self("rm", "--all")


class Container:
    """One container of the image, run by runc with what a kubelet asks for.

    A runtime gives the process the capabilities of the pod's security context as permitted, effective and bounding; the
    kernel takes them away at the exec of a user who is not root, but for those of the file (capabilities(7)).

    Args:
        tree: the image's files.
        place: an empty directory of the test; `place / "targets"` is mounted at /etc/lbguard/targets.
        uid: user and group.
        add: the capabilities that are added after all were dropped.
        env: environment variables.
    """

    def __init__(
        self, tree: Path, place: Path, *, uid: int = UID, add: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self._name = f"lbguard-{uuid.uuid4().hex[:12]}"
        self._place = place
        self._bundle = place / self._name
        self._runc = ("runc", "--root", place / "runc", "--rootless", "true")
        self._tree = tree
        self._uid = uid
        self._env = {"PATH": "/usr/local/bin:/usr/bin:/bin", **(env or {})}
        self._add = [f"CAP_{name}" for name in add]

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        self._bundle.mkdir()
        for volume in ("run", "shm", "targets"):
            (self._place / volume).mkdir(exist_ok=True)
            (self._place / volume).chmod(0o777)  # as the kubelet makes an emptyDir
        (self._bundle / "config.json").write_text(json.dumps(self._config(argv)))
        command: list[str | Path] = [*self._runc, "run", "--bundle", self._bundle, self._name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *argv: str) -> tuple[int, str]:
        """Run a command to its end; returns exit status and output."""
        with self.popen(*argv) as process:
            said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def exec(self, *argv: str) -> tuple[int, str]:
        """Run a command beside the one that runs."""
        done = subprocess.run([*self._runc, "exec", self._name, *argv], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def kill(self, signal: str = "TERM") -> None:
        subprocess.run([*self._runc, "kill", self._name, signal], capture_output=True, timeout=60, check=False)

    def _config(self, argv: Sequence[str]) -> dict[str, Any]:
        volumes = {"run": "/run/lbguard", "shm": "/dev/shm", "targets": "/etc/lbguard/targets"}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": list(argv),
                "cwd": "/",
                "env": [f"{name}={value}" for name, value in self._env.items()],
                "user": {"uid": self._uid, "gid": self._uid},
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), self._add),
                "noNewPrivileges": True,  # allowPrivilegeEscalation: false
            },
            "root": {"path": str(self._tree), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=0755"]},
                *(
                    {"destination": place, "type": "bind", "source": str(self._place / volume), "options": ["bind"]}
                    for volume, place in volumes.items()
                ),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        }


def _must(*argv: str | Path, timeout_s: float = 60) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout
