"""What holds for all tests."""

from __future__ import annotations

import os

import hypothesis
import pytest

# Tests assert no times: a busy machine makes any of them late.
hypothesis.settings.register_profile("p2pcloop", deadline=None)
hypothesis.settings.load_profile("p2pcloop")

# The same guests whether or not tools/get-uml-kernel was run here; by hand, another can be chosen.
os.environ.setdefault("P2PCLOOP_KERNEL", "system")

_LATER = ("interop", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quick tests first, then those with foreign programs, then the boots."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    return max((n for n, mark in enumerate(_LATER, 1) if item.get_closest_marker(mark)), default=0)
