"""Tests on the real kernel. The first test that runs moves the whole pytest process into a sandbox of its own."""

import itertools
import shutil
from collections.abc import Callable, Iterator

import pytest

from lbguard.lab.netns import Namespace, enter_sandbox

_numbers = itertools.count()


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Leave the host's namespaces; skip, visibly, where the kernel does not allow that."""
    if shutil.which("ip") is None:
        pytest.fail("iproute2 is missing: apt-get install iproute2")
    try:
        enter_sandbox()
    except OSError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


@pytest.fixture
def make_namespace(sandbox: None) -> Iterator[Callable[[str], Namespace]]:
    """Make namespaces by a short name; all are removed after the test."""
    made: list[Namespace] = []

    def make(name: str) -> Namespace:
        namespace = Namespace(f"{name}-{next(_numbers)}")
        made.append(namespace)
        return namespace

    yield make
    for namespace in made:
        namespace.delete()


@pytest.fixture
def namespace(make_namespace: Callable[[str], Namespace]) -> Namespace:
    """One fresh namespace."""
    return make_namespace("ns")
