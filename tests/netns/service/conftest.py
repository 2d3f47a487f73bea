from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbguard.lab.netns import Namespace
from tests.netns.service.guarded import Guarded


@pytest.fixture
def guarded(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> Iterator[Guarded]:
    """A load balancer with links to two proxies; no service runs yet."""
    made = Guarded(make_namespace("lb"), make_namespace("px"), tmp_path)
    yield made
    made.close()
