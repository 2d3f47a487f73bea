"""Full collections stay short, and nothing in a cycle is leaked for good. In its own process: it turns global knobs."""

import subprocess
import sys

PROGRAM = """
import gc, weakref
from lbguard.service.garbage import GarbageCalmer

class Ring:
    def __init__(self):
        self.itself = self

now = 0.0
calmer = GarbageCalmer(clock=lambda: now, thaw_s=10.0)
before = gc.get_threshold()
gc.disable()                      # as the command does at its beginning
calmer.prepare()
print("collections are rarer from the start on:", gc.isenabled(), gc.get_threshold() > before)
assert gc.get_freeze_count() > 1000
calmer.start()
ring = Ring()
gone = weakref.ref(ring)
gc.collect()                      # a full collection while the ring is in use: it is frozen
frozen = gc.get_freeze_count()
assert frozen > 1000, frozen
del ring
gc.collect()
print("after the next collection:", gone() is None)
now = 10.0
gc.collect()
print("after the thaw:", gone() is None)
print("frozen again:", gc.get_freeze_count() > 1000)
"""


def test_cycles_that_were_frozen_are_freed_at_the_hourly_thaw() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "collections are rarer from the start on: True True",
        "after the next collection: False",
        "after the thaw: True",
        "frozen again: True",
    ]
