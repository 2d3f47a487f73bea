from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.sources.interposer.directory import SharedDirectory


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[SharedDirectory]:
    made = SharedDirectory(tmp_path)
    made.open()
    yield made
    made.close()
