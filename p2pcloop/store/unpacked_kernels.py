"""The programs of kernels that guests in QEMU were started with, in the user's cache: files
`vmlinux-*`, as a bzImage unpacks them.

The pages of such a file are like pages of the memory of a guest that runs that kernel, which has
changed some bytes of each: alternatives, return thunks, static keys. So they are a dictionary for
those (docs/formats/pack.md, "Dictionary chunks").
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

from p2pcloop.formats.elf import PT_LOAD, segments
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE

PREFIX = "vmlinux-"

PageLike = Callable[[int], bytes | None]
"""Returns the page of a kernel that a block of a state's device was loaded from, or None."""

_ZEROS = bytes(BLOCK_SIZE)
_HEAD = 1 << 16
"""Bytes of a file that hold its program headers."""

_log = logging.getLogger(__name__)


def kernels_folder() -> Path:
    """Where the files are."""
    import platformdirs  # noqa: PLC0415  each boot loads this module

    return Path(platformdirs.user_cache_path("p2pcloop", appauthor=False)) / "kernels"


def pages_like(machine: MachineState, folder: Path | None = None) -> list[PageLike]:
    """For each kernel that is here, what tells its pages by the blocks of a state.

    Args:
        machine: of the state.
        folder: of the kernels; None for the user's.
    """
    memory = machine.memory.blocks
    found: list[PageLike] = []
    for path in sorted((folder or kernels_folder()).glob(f"{PREFIX}*")):
        try:
            kernel = _Kernel(path)
        except (OSError, struct.error) as err:  # removed just now; a pipe; cut off
            _log.debug("%s is passed over: %s", path, err)
            continue
        found.append(_KernelInMemory(kernel, memory))
    return found


def note_use(kernel: PageLike) -> None:
    """A dictionary was found to be of this kernel: its file is to stay, as if a guest had been
    started with it."""
    if isinstance(kernel, _KernelInMemory):
        kernel.file.note_use()


@dataclass(frozen=True, slots=True)
class _KernelInMemory:
    file: _Kernel
    memory: range

    def __call__(self, block: int) -> bytes | None:
        if block not in self.memory:
            return None
        return self.file.page(self.memory.index(block) * BLOCK_SIZE)


class _Kernel:
    """A file with a kernel. It is opened for each page: it may be removed at any time, and a
    descriptor of it would have to be closed by each user of a page."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        self._loaded = [
            each
            for each in segments(self._read(0, _HEAD))
            if each.kind == PT_LOAD and each.offset + each.length <= size
        ]

    def page(self, address: int) -> bytes | None:
        """What is loaded to a page of the guest's memory; None for nothing, and for zeros."""
        for segment in self._loaded:
            within = address - segment.address
            if 0 <= within <= segment.length - BLOCK_SIZE:
                page = self._page_at(segment.offset + within)
                return None if page == _ZEROS else page
        return None

    def note_use(self) -> None:
        """Have the file be young."""
        try:
            os.utime(self._path)
        except OSError as err:  # it was removed just now, or is another user's
            _log.debug("%s: %s", self._path, err)

    def _page_at(self, offset: int) -> bytes | None:
        try:
            page = self._read(offset, BLOCK_SIZE)
        except OSError as err:
            _log.debug("%s: %s", self._path, err)
            return None
        return page if len(page) == BLOCK_SIZE else None

    def _read(self, offset: int, length: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)
