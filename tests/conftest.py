"""What holds for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.order import deal
from tests.support.programs import Nodes

# Tests assert no times: a busy machine makes any of them late.
hypothesis.settings.register_profile("p2pcloop", deadline=None)
hypothesis.settings.load_profile("p2pcloop")

# Tests compare English texts, whatever the language of who runs them.
os.environ |= {"LC_ALL": "C.UTF-8", "LANGUAGE": ""}

# By hand, a kernel for all guests can be chosen; else tests/e2e/conftest.py does. Workers of xdist
# inherit this.
if "P2PCLOOP_KERNEL" not in os.environ:
    os.environ |= {"P2PCLOOP_KERNEL": "system", "P2PCLOOP_KERNEL_OF_TESTS": "by file"}

_LATER = ("interop", "e2e")
_BY_QEMU = (
    *("test_migrate.py", "test_netboot.py", "test_node_rounds.py", "test_qemu.py"),
    *("test_suspend.py", "test_suspend_commands.py"),
)
_FOLDERS_THAT_WAIT = ("engine", "interop", "mount", "node")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quick tests first, then those with foreign programs, then the boots.

    Where several workers share the tests, each begins with boots instead.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = deal(items, workers, _weight, lambda item: item.path)
    else:
        items.sort(key=_rank)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave the tests themselves out of the garbage collector's rounds: each took half a second."""
    gc.collect()
    gc.freeze()


def _rank(item: pytest.Item) -> int:
    return max((n for n, mark in enumerate(_LATER, 1) if item.get_closest_marker(mark)), default=0)


def _weight(item: pytest.Item) -> int:
    if item.get_closest_marker("e2e"):
        return 100 if item.path.name in _BY_QEMU else 20
    return 3 if item.path.parent.name in _FOLDERS_THAT_WAIT else 1
