import subprocess
import sys
from pathlib import Path

import pytest

NET_RAW = 13
LINES = Path("/proc/self/status").read_text().splitlines()
EFFECTIVE = next(int(line.split()[1], 16) for line in LINES if line.startswith("CapEff:"))

# A user who keeps what was permitted over the change of the user is left with nothing effective (capabilities(7)): the
# state that a file with capabilities without the effective bit starts in.
CHILD = """
import ctypes, os, socket
from lbguard.kernel.process import use_permitted
PR_SET_KEEPCAPS = 8
assert ctypes.CDLL(None).prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
os.setresuid({uid}, {uid}, {uid})
def shown():
    with open("/proc/self/status") as status:
        return dict(line.split() for line in status if line.startswith("Cap"))
before = shown()
use_permitted()
after = shown()
print(before["CapEff:"], after["CapEff:"], after["CapPrm:"])
socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
use_permitted()
"""


@pytest.mark.skipif(not EFFECTIVE >> NET_RAW & 1, reason="needs NET_RAW to give away")
def test_what_is_permitted_becomes_effective() -> None:
    uid = 65534
    done = subprocess.run([sys.executable, "-c", CHILD.format(uid=uid)], capture_output=True, text=True, check=False)
    if "OSError: [Errno 22]" in done.stderr:
        pytest.skip(f"uid {uid} does not exist in this user namespace")
    assert done.returncode == 0, done.stderr
    before, after, permitted = (int(text, 16) for text in done.stdout.split())
    assert before == 0
    assert after == permitted
    assert after >> NET_RAW & 1
