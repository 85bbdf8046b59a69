"""Work for both cores, answered in order, with a bounded number of pieces under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    ahead: int = 3,
) -> Generator[Result]:
    """Yield `work(item)` for each item, in order, computed on threads.

    Pays where `work` leaves the GIL (zlib, zstd, SHA-256, file reads). A few items a worker are
    taken in advance, so that memory stays bounded however long `items` is. When the caller stops
    early, what was not begun is dropped.

    Args:
        work: called on worker threads.
        items: taken on the calling thread.
        workers: threads; the processors this process may use by default.
        ahead: items a worker taken in advance. More where some take much longer than others: what
            is done waits for the one before it.
    """
    threads = workers or len(os.sched_getaffinity(0))
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= ahead * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
