"""The memory of a guest in QEMU: what has content of its own is found, and read, from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError
from p2pcloopd.guest.machine.qemu_memory import (
    FileMemory,
    PrivateMemory,
    copy_memory,
    new_memory,
    pieces,
)
from p2pcloopd.guest.system.preload import compiled

PAGE = 4096
SIZE = 64 * PAGE

_PROGRAM = """
import ctypes, mmap, os, sys
fd = os.open(f"/proc/self/fd/{os.environ['P2PCLOOP_MEMORY']}", os.O_RDWR)
with mmap.mmap(fd, int(sys.argv[1])) as memory:
    page = ctypes.c_char.from_buffer(memory)
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(ctypes.addressof(page), len(memory), mmap.MADV_HUGEPAGE):
        sys.exit("no huge pages can be asked for")
    madvise(ctypes.addressof(page), 3 * mmap.PAGESIZE, mmap.MADV_DONTDUMP)
    memory[5 * 4096 : 7 * 4096 + 1] = b"x" * 8193
    memory[40 * 4096] = memory[41 * 4096]
    table = open("/proc/self/smaps", errors="replace").read()
    told = table.split(f"{ctypes.addressof(page):x}-")[1]
    print("hg" in told.split("VmFlags:")[1].splitlines()[0])
    sys.stdout.flush()
    sys.stdin.read()
    del page
"""


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


def test_a_file_for_memory_has_its_size_for_ever(descriptors: list[int]) -> None:
    fd = new_memory(SIZE)
    descriptors.append(fd)
    assert os.fstat(fd).st_size == SIZE
    for size in (SIZE - PAGE, SIZE + PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", SIZE)
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # as QEMU opens it
    os.close(other)


def test_what_a_guest_has_not_touched_is_in_no_extent(descriptors: list[int]) -> None:
    fd = new_memory(SIZE)
    descriptors.append(fd)
    memory = FileMemory(fd, SIZE)
    assert memory.extents() == []
    os.pwrite(fd, b"a" * (PAGE + 1), 2 * PAGE)
    os.pwrite(fd, b"z", SIZE - 1)
    assert memory.extents() == [(2 * PAGE, 2 * PAGE), (SIZE - PAGE, PAGE)]
    assert memory.read(2 * PAGE, 2 * PAGE) == b"a" * (PAGE + 1) + bytes(PAGE - 1)
    copy = copy_memory(memory)
    try:
        os.pwrite(fd, b"b", 2 * PAGE)
        assert copy.extents() == memory.extents()
        assert copy.read(2 * PAGE, 1) == b"a"
    finally:
        copy.close()


def test_pieces_are_of_the_size_that_is_asked_for() -> None:
    assert list(pieces([(0, 3), (10, 8)], 4)) == [(0, 3), (10, 4), (14, 4)]


@contextmanager
def mapping(path: Path) -> Iterator[tuple[int, int, bool]]:
    """A program that maps a file with the shim, and has written there: its pid, our descriptor of
    the file, and whether the kernel would give it huge pages there."""
    shim = compiled("memory_shim", "for a test")
    fd = os.open(path, os.O_RDONLY)
    environment = {"LD_PRELOAD": str(shim), "P2PCLOOP_MEMORY": str(fd)}
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(path.stat().st_size)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pass_fds=[fd], text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said in ("True\n", "False\n")
        yield program.pid, fd, said == "True\n"
    finally:
        program.communicate()
        os.close(fd)


@pytest.mark.parametrize("name", ["memory", "caf\udce9 \r of"])
def test_a_program_behind_the_shim_has_pages_of_its_own(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    before = bytes(range(256)) * (SIZE // 256)
    path.write_bytes(before)
    path.chmod(0o444)
    with mapping(path) as (pid, fd, gets_huge_pages):
        memory = PrivateMemory(pid, fd, SIZE)
        # The last one is as it was: who saves the pages compares them.
        assert memory.extents() == [(5 * PAGE, 3 * PAGE), (40 * PAGE, PAGE)]
        assert memory.read(5 * PAGE, 3 * PAGE) == b"x" * 8193 + before[1:PAGE]
        assert memory.read(40 * PAGE, PAGE) == before[:PAGE]
        assert not gets_huge_pages
        with pytest.raises(GuestError, match="as it was told to"):
            PrivateMemory(pid, fd, SIZE + PAGE)
    assert path.read_bytes() == before
    with pytest.raises(GuestError, match="cannot be read"):
        memory.extents()
    memory.close()


def test_another_file_is_mapped_as_it_is_asked_for(tmp_path: Path) -> None:
    """The shim changes nothing else."""
    path, other = tmp_path / "memory", tmp_path / "other"
    path.write_bytes(bytes(SIZE))
    other.write_bytes(bytes(SIZE))
    program = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)\n"
        "with mmap.mmap(fd, 4096) as memory: memory[0] = 7"
    )
    with path.open("rb") as file:
        environment = {
            "LD_PRELOAD": str(compiled("memory_shim", "for a test")),
            "P2PCLOOP_MEMORY": str(file.fileno()),
        }
        subprocess.run(
            [sys.executable, "-c", program, other], env=environment, pass_fds=[file.fileno()],
            check=True,
        )  # fmt: skip
    assert other.read_bytes()[0] == 7
