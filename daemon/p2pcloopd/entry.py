"""The border between a plain command and trio: one error in, one error out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

from p2pcloop.errors import P2pcloopError

Result = TypeVar("Result")


def run(function: Callable[[], Awaitable[Result]]) -> Result:
    """Run an async function to its end.

    Raises:
        P2pcloopError: the first of those that left the nurseries, where there was nothing else.
        BaseExceptionGroup: anything else, as it came: a bug of ours.
    """
    try:
        return trio.run(function)
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if isinstance(leaves[0], P2pcloopError) and all(
            isinstance(leaf, (P2pcloopError, trio.Cancelled)) for leaf in leaves
        ):
            raise leaves[0] from group
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
