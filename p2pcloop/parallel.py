"""Work spread over threads, its results in order, with a bounded number of items under way."""

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

    Of use if `work` releases the GIL (zlib, zstd, SHA-256, file reads). Only a few items per worker
    are taken in advance, so memory stays bounded however long `items` is. If the caller stops
    early, or is interrupted, items that were not begun are dropped, and the threads end with those
    that were.

    Args:
        work: called on worker threads.
        items: taken on the calling thread.
        workers: threads; by default as many as this process may use processors.
        ahead: items per worker that are taken in advance. More if some take much longer than
            others: a result waits for the one before it.
    """
    threads = workers or len(os.sched_getaffinity(0))
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= ahead * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
