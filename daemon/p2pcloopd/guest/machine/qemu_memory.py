"""The memory of a guest in QEMU: which of it has content of its own, and what that is.

The memory of a guest that booted is a file without a name, which this process makes and keeps
(`new_memory`). A guest that was resumed has a file that others begin with, too; QEMU maps it
privately (resources/memory_shim.c), so what the guest has written is in QEMU's own pages
(`PrivateMemory`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from p2pcloop.errors import GuestError
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

Extent = tuple[int, int]
"""Offset and length, multiples of 4096."""

_PIECE = 1 << 20

_ENTRY_SIZE = 8
_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20
"""Bits of the last byte of an entry of /proc/PID/pagemap (pagemap.rst): 63, 62 and 61. A page that
a process has written to in a private mapping of a file belongs to no file any more."""

_IS_PRIVATE = bytes(
    bool(byte & (_PRESENT | _SWAPPED)) and not byte & _OF_FILE for byte in range(256)
)
_PRIVATE_RUN = re.compile(rb"\x01+")
_MAPPING = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) rw-p (?P<offset>[0-9a-f]+) (?P<file>\S+ \d+) ",
    re.ASCII | re.MULTILINE,
)
"""A line of /proc/PID/maps about what is mapped privately, to be written."""


def new_memory(size: int) -> int:
    """Return the descriptor of a file for a guest's memory: all zeros, and of this size for ever.

    QEMU maps it, shared. So this process reads the memory of a guest that is stopped, without QEMU,
    and finds its holes. A QEMU that a guest has broken can neither make it longer, and fill this
    machine's memory, nor cut it short.

    Args:
        size: bytes, a multiple of 4096.

    Raises:
        OSError: the system makes none.
    """
    fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


class GuestMemory(Protocol):
    """The memory of a guest that is stopped, or was when it was copied.

    Attributes:
        size: bytes.
        is_whole: whether what lies in no extent is zeros. Else it is what the file has that the
            guest was resumed from; and a page in an extent may equal that, too.
    """

    @property
    def size(self) -> int: ...

    @property
    def is_whole(self) -> bool: ...

    def extents(self) -> list[Extent]:
        """Return where it has content of its own, in ascending order, without overlaps."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes inside one extent.

        Raises:
            GuestError: they cannot be read: QEMU has ended.
        """

    def close(self) -> None:
        """Read no more."""


class FileMemory:
    """Memory in a sparse file; see `GuestMemory`.

    Attributes:
        fd: of the file.
    """

    def __init__(self, fd: int, size: int, *, is_whole: bool = True) -> None:
        """Read a file.

        Args:
            fd: of the file; it stays the caller's.
        """
        self.fd = fd
        self.size = size
        self.is_whole = is_whole

    def extents(self) -> list[Extent]:
        """Return the file's data; see `GuestMemory`."""
        found = []
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
            except OSError as err:
                if err.errno == errno.ENXIO:  # no data follows
                    break
                raise
            end = os.lseek(self.fd, start, os.SEEK_HOLE)
            found.append((start, end - start))
        return found

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file."""
        return _read_all(self.fd, offset, length)

    def close(self) -> None:
        """Do nothing: the descriptor is the caller's."""


class OwnedMemory(FileMemory):
    """Memory in a file that is closed with it."""

    def close(self) -> None:
        """Give its room back."""
        os.close(self.fd)


class PrivateMemory:
    """Memory that QEMU maps privately; see `GuestMemory`.

    QEMU must be stopped, and must not end meanwhile. This process needs what ptrace needs
    (ptrace(2), "Ptrace access mode checking"): it is root, or it is an ancestor of QEMU with the
    same user, which the first setting of Yama is content with.
    """

    is_whole = False

    def __init__(self, pid: int, fd: int, size: int) -> None:
        """Find the mapping.

        Args:
            pid: QEMU's, as this process sees it.
            fd: the file that is mapped; it stays the caller's.
            size: bytes of the mapping.

        Raises:
            GuestError: QEMU has ended, or does not map this.
        """
        self.size = size
        folder = Path(f"/proc/{pid}")
        with ExitStack() as stack:
            try:
                # As long as they are open, they are this process's, whatever has its number later.
                self._memory = stack.enter_context(open(folder / "mem", "rb", buffering=0))
                self._pages = stack.enter_context(open(folder / "pagemap", "rb", buffering=0))
                maps = os.fsdecode((folder / "maps").read_bytes())
            except OSError as err:
                raise _unreadable(err) from err
            self._start = self._find(maps, fd)
            stack.pop_all()

    def extents(self) -> list[Extent]:
        """Return the private pages; see `GuestMemory`."""
        pages = self.size // BLOCK_SIZE
        at = self._start // BLOCK_SIZE * _ENTRY_SIZE
        try:
            entries = _read_all(self._pages.fileno(), at, pages * _ENTRY_SIZE)
        except OSError as err:
            raise _unreadable(err) from err
        private = entries[_ENTRY_SIZE - 1 :: _ENTRY_SIZE].translate(_IS_PRIVATE)
        return [
            (run.start() * BLOCK_SIZE, len(run[0]) * BLOCK_SIZE)
            for run in _PRIVATE_RUN.finditer(private)
        ]

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of QEMU's memory; see `GuestMemory`."""
        try:
            return _read_all(self._memory.fileno(), self._start + offset, length)
        except OSError as err:
            raise _unreadable(err) from err

    def close(self) -> None:
        """Let go of QEMU."""
        self._memory.close()
        self._pages.close()

    def _find(self, table: str, fd: int) -> int:
        """Return the address of the mapping of a file in a table of mappings."""
        named = _name_in_maps(fd)
        # Advice for a part of it makes two lines of it.
        start = end = 0
        for found in _MAPPING.finditer(table):
            if found["file"] != named:
                continue
            first, last, offset = (int(found[key], 16) for key in ("start", "end", "offset"))
            if offset == 0:
                start = first
            elif first != end or offset != first - start:
                break
            end = last
        if end - start != self.size:
            raise GuestError("QEMU does not have the guest's memory as it was told to")
        return start


def copy_memory(memory: GuestMemory) -> OwnedMemory:
    """Return a copy, for a guest that goes on.

    Raises:
        GuestError: it cannot be read.
        OSError: this machine has no room for it.
    """
    fd = new_memory(memory.size)
    try:
        for offset, length in pieces(memory.extents()):
            os.pwrite(fd, memory.read(offset, length), offset)
    except BaseException:
        os.close(fd)
        raise
    return OwnedMemory(fd, memory.size, is_whole=memory.is_whole)


def pieces(extents: list[Extent], limit: int = _PIECE) -> Iterator[Extent]:
    """Divide extents into such of at most `limit` bytes."""
    for start, length in extents:
        for at in range(start, start + length, limit):
            yield at, min(limit, start + length - at)


def _name_in_maps(fd: int) -> str:
    """How the kernel calls a file in /proc/PID/maps: on some file systems, as overlayfs and btrfs,
    it is not by the numbers that stat(2) tells."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    with mmap.mmap(fd, BLOCK_SIZE, flags=mmap.MAP_PRIVATE, prot=access) as mapped:
        page = ctypes.c_char.from_buffer(mapped)
        address = ctypes.addressof(page)
        del page  # else it cannot be unmapped
        table = os.fsdecode(Path("/proc/self/maps").read_bytes())
    for found in _MAPPING.finditer(table):
        if int(found["start"], 16) <= address < int(found["end"], 16):
            return found["file"]
    raise GuestError("the kernel does not tell what this process maps")


def _read_all(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            raise OSError(errno.EIO, "it is shorter than it was")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _unreadable(err: OSError) -> GuestError:
    hint = None
    if err.errno in (errno.EPERM, errno.EACCES):
        hint = tr(
            "this system lets no program look into another: see `sysctl kernel.yama.ptrace_scope`"
        )
    return GuestError(tr("the memory of QEMU cannot be read: {why}", why=err.strerror), hint=hint)
