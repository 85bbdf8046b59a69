"""Chunks that threads decode before they are read.

Decompression and hashing release the GIL, but to hand over one chunk and wait for it costs more
than it saves. So this is for several chunks that are needed at once, and for those that follow. A
reader decodes a chunk itself if no thread has begun; while a thread decodes it, the reader decodes
another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

Decode = Callable[[], bytes | None]
"""Returns the content of a chunk, or None if the stored bytes are wrong; runs on any thread."""

MAX_SIZE: Final = 6 << 20
"""Stored and decoded bytes of all chunks that are under way or not read yet; the oldest are
dropped."""

_MAX_WORKERS = 3


class DecodeAhead:
    """Decodings under way, by key. All calls come from one thread."""

    def __init__(self) -> None:
        """Start no thread yet: a process that forks must not have any."""
        self.workers = min(len(os.sched_getaffinity(0)) - 1, _MAX_WORKERS)
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: dict[int, _Job] = {}
        self._size = 0

    def __contains__(self, key: int) -> bool:
        return key in self._jobs

    def start(self, key: int, size: int, decode: Decode) -> None:
        """Have a chunk of `size` stored and decoded bytes decoded by the next free thread."""
        while self._jobs and self._size + size > MAX_SIZE:
            self._pop(next(iter(self._jobs))).future.cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "decode")
        self._jobs[key] = _Job(self._pool.submit(decode), decode, size)
        self._size += size

    def take(self, key: int) -> bytes | None:
        """Wait for the decoding of a key, return its result, and forget it."""
        job = self._pop(key)
        if job.begin():
            return job.result
        for other in reversed(self._jobs.values()):
            if job.future.done():
                break
            other.begin()
        return job.future.result()

    def close(self) -> None:
        """End the threads; decodings that have not begun are dropped."""
        self._jobs.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _pop(self, key: int) -> _Job:
        job = self._jobs.pop(key)
        self._size -= job.size
        return job


class _Job:
    """A decoding: done on a thread, or by the reader if no thread has begun."""

    __slots__ = ("_decode", "_done_here", "future", "result", "size")

    def __init__(self, future: Future[bytes | None], decode: Decode, size: int) -> None:
        self.future = future
        self.size = size
        self.result: bytes | None = None
        self._decode = decode
        self._done_here = False

    def begin(self) -> bool:
        """Decode now, unless a thread has begun; return whether `result` has the result."""
        if not self._done_here and self.future.cancel():
            self.result = self._decode()
            self._done_here = True
        return self._done_here
