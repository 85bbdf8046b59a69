"""A program that maps a memory file privately, as a guest's machine does, and reads pages of it."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from p2pcloopd.block.memory_file import MemoryFile
from tests.support.waiting import BOUND

PAGE = 4096

_PROGRAM = """
import ctypes, hashlib, mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
opened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
memory = mmap.mmap(opened, size, flags=mmap.MAP_PRIVATE)
print("mapped", flush=True)
for line in sys.stdin:
    word, *numbers = line.split()
    first, last = map(int, numbers)
    if word == "read":
        digest = hashlib.sha256()
        # Page by page: the C library may copy many of them from the last to the first.
        for at in range(first, last, 4096):
            digest.update(memory[at : min(at + 4096, last)])
        print(digest.hexdigest(), flush=True)
    elif word == "write":
        memory[first:last] = b"w" * (last - first)
        print("written", flush=True)
    elif word == "cached":
        told = (ctypes.c_ubyte * ((last - first) // 4096))()
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + first
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(at), last - first, told) == 0
        print(sum(each & 1 for each in told), flush=True)
    elif word == "try":
        said = []
        shared = mmap.mmap(opened, size)
        shared[first:last] = b"s" * (last - first)
        for call in (
            lambda: shared.flush(),
            lambda: os.pwrite(opened, b"x" * (last - first), first),
            lambda: os.ftruncate(opened, first),
            lambda: os.posix_fallocate(opened, first, last - first),
            lambda: os.setxattr(opened, "user.a", b"b"),
            lambda: os.lseek(opened, 0, os.SEEK_DATA),
            lambda: os.fsync(opened),
            lambda: os.fchmod(opened, 0o777),
            lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC),
        ):
            try:
                call()
                said.append("done")
            except OSError as err:
                said.append(os.strerror(err.errno))
        print(";".join(said), flush=True)
"""


class MemoryReader:
    """The program, which runs; its methods block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def begin(self, word: str, first: int, last: int) -> None:
        """Have it do something with the bytes from `first` to before `last`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word} {first} {last}\n")
        self.process.stdin.flush()

    def said(self) -> str:
        """The next line that it says; empty if it ended."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], BOUND)
        assert readable, "it waits for a page for ever"
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, word: str, first: int, last: int) -> str:
        """Have it do something, and return what it says then; "read" says the SHA-256, "cached"
        how many pages of these the kernel has."""
        self.begin(word, first, last)
        return self.said()


@contextmanager
def reading(file: MemoryFile, *before: str | Sequence[str]) -> Iterator[MemoryReader]:
    """A running reader; `before` are words before its command line."""
    words = [*before, sys.executable, "-S", "-c", _PROGRAM, str(file.file), str(file.size)]
    with subprocess.Popen(
        words,  # type: ignore[arg-type]
        pass_fds=[file.file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            reader = MemoryReader(process)
            assert reader.said() == "mapped"
            yield reader
        finally:
            process.kill()
