from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.lab.topology import Chain
from tests.netns.companion.beside import MAX_TARGETS, Beside


@pytest.fixture
def beside(sandbox: None, tmp_path: Path) -> Iterator[Beside]:
    """The chain with today's process at work."""
    with Chain(max_targets=MAX_TARGETS) as chain:
        made = Beside(chain, tmp_path)
        with made.running():
            yield made
