"""The entry of a process: its limits, and trio's exception groups as one plain error."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from p2pcloop.errors import P2pcloopError

Result = TypeVar("Result")

_MAX_FILES = 1 << 16


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as the system allows, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MAX_FILES)), hard))


def run(function: Callable[[], Awaitable[Result]]) -> Result:
    """Run an async function to its end. Errors leave it as they leave `plain_errors`."""
    with plain_errors():
        return trio.run(function)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let one error out of the nurseries inside as itself, without the groups round it.

    Of several `P2pcloopError`s it is the first one.

    Raises:
        BaseExceptionGroup: several errors of other kinds, as they came: a bug of ours.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [leaf for leaf in _leaves(group) if not isinstance(leaf, trio.Cancelled)]
        if len(errors) == 1 or (errors and all(isinstance(e, P2pcloopError) for e in errors)):
            raise errors[0] from None
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
