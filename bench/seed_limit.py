"""The least that seeding a cloop takes: its library calls, on all processors, and nothing else.

`python -m bench.seed_limit CLOOP` reads, decodes and hashes each block, and then reads and hashes
the file once more for the pieces of its torrent. It keeps no table, order or error.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.codec import decode

_STEP = 1 << 20
_PIECE = 32 << 10


def _on_all_processors(work: Callable[[int, int], None]) -> None:
    """Call `work` on threads, one for each processor, with its number and how many there are."""
    count = len(os.sched_getaffinity(0))
    threads = [threading.Thread(target=work, args=(number, count)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hash_blocks(path: Path) -> None:
    """Decode and hash every block of a cloop that is not zeros."""
    fd = os.open(path, os.O_RDONLY)
    with open_cloop(path) as cloop:
        index = cloop.index
        size, blocks = index.header.block_size, index.header.block_count
        zeros = bytes(size)

    def work(number: int, count: int) -> None:
        stored_zeros = b""
        for block in range(blocks * number // count, blocks * (number + 1) // count):
            offset, length = index.extent(block)
            stored = os.pread(fd, length, offset)
            if stored == stored_zeros:
                continue
            content = decode(index.codec(block), stored, size)
            if content == zeros:
                stored_zeros = stored
            else:
                hashlib.sha256(content).digest()

    _on_all_processors(work)
    os.close(fd)


def hash_pieces(path: Path) -> None:
    """Hash every piece of a file."""
    fd = os.open(path, os.O_RDONLY)
    size = path.stat().st_size

    def work(number: int, count: int) -> None:
        for offset in range(number * _STEP, size, count * _STEP):
            data = memoryview(os.pread(fd, _STEP, offset))
            for at in range(0, len(data), _PIECE):
                hashlib.sha1(data[at : at + _PIECE], usedforsecurity=False).digest()

    _on_all_processors(work)
    os.close(fd)


if __name__ == "__main__":
    for each in (hash_blocks, hash_pieces):
        each(Path(sys.argv[1]))
