"""The load balancer's container as far as it matters: busybox for a shell, and our `nfqlb` before the real one."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "deploy" / "meridio" / "nfqlb"
MISSING = "" if shutil.which("busybox") else "busybox is missing: apt-get install busybox"
REAL = Path(shutil.which("nfqlb") or "/nowhere/nfqlb")


class Interposed:
    """A directory of programs (busybox's, and ours as `nfqlb`), one with the real nfqlb, and the shared one."""

    def __init__(self, home: Path, real: Path) -> None:
        self.shared = home / "shared"
        self.real = real
        self.programs = home / "programs"
        self.programs.mkdir(parents=True)
        self.shared.mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None, MISSING
        subprocess.run([busybox, "--install", "-s", str(self.programs)], check=True)
        front = home / "front"
        front.mkdir()
        self.program = front / "nfqlb"
        # As in the load balancer's container, /bin/sh is busybox's.
        _, _, rest = PROGRAM.read_text().partition("\n")
        self.program.write_text(f"#!{busybox} ash\n{rest}")
        self.program.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment of the load balancer."""
        path = os.pathsep.join(map(str, (self.program.parent, self.real.parent, self.programs)))
        return {"PATH": path, "LBGUARD_NFQLB_DIR": str(self.shared)}

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """Start `nfqlb` with arguments, found by name as Meridio does; `changes` are to the environment."""
        return subprocess.Popen(
            [str(self.program), *arguments],
            env=self.environment | changes,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **changes: str) -> tuple[int, str]:
        """Run `nfqlb` with arguments; return its exit status and what it printed on either output."""
        process = self.start(*arguments, **changes)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed


def make_teller(directory: Path) -> Path:
    """Make a stand-in for the real nfqlb that notes its arguments, one call a line and quoted, and changes nothing."""
    directory.mkdir()
    program = directory / "nfqlb"
    log = shlex.quote(str(directory / "calls"))
    program.write_text(
        '#!/bin/sh\nline=\nfor word in "$@"; do line="$line[$word]"; done\n'
        f'printf \'%s\\0\' "$line" >>{log}\necho "real $1"\n[ "$1" != lose ] || exit 7\n'
    )
    program.chmod(0o755)
    return program


def told(teller: Path) -> list[str]:
    """Return the calls that a teller got."""
    log = teller.with_name("calls")
    return log.read_text().split("\0")[:-1] if log.exists() else []
