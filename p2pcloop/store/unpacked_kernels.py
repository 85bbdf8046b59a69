"""The programs of kernels that guests in QEMU were started with, in the user's cache: files
`vmlinux-*`, as a bzImage unpacks them.

The pages of such a file are like pages of the memory of a guest that runs that kernel, which has
changed some bytes of each: alternatives, return thunks, static keys. So they are a dictionary for
those (docs/formats/pack.md, "Dictionary chunks").
"""

from __future__ import annotations

import logging
import mmap
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import platformdirs

from p2pcloop.formats.elf import PT_LOAD, Segment, segments
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.units import BLOCK_SIZE

PREFIX = "vmlinux-"

PageLike = Callable[[int], bytes | None]
"""Returns the page of a kernel that a block of a state's device was loaded from, or None."""

_ZEROS = bytes(BLOCK_SIZE)

_log = logging.getLogger(__name__)


def kernels_folder() -> Path:
    """Where the files are."""
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
        except (OSError, ValueError, struct.error) as err:  # removed just now; empty; cut off
            _log.debug("%s is passed over: %s", path, err)
            continue
        found.append(partial(_page, kernel, memory))
    return found


def _page(kernel: _Kernel, memory: range, block: int) -> bytes | None:
    return kernel.page(memory.index(block) * BLOCK_SIZE) if block in memory else None


class _Kernel:
    """A file with a kernel, mapped."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._program = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._loaded = [
            each
            for each in segments(self._program)
            if each.kind == PT_LOAD and each.offset + each.length <= len(self._program)
        ]

    def page(self, address: int) -> bytes | None:
        """What is loaded to a page of the guest's memory; None for nothing, and for zeros."""
        for segment in self._loaded:
            if (page := self._page_of(segment, address)) is not None:
                return None if page == _ZEROS else page
        return None

    def _page_of(self, segment: Segment, address: int) -> bytes | None:
        within = address - segment.address
        if not 0 <= within <= segment.length - BLOCK_SIZE:
            return None
        return self._program[segment.offset + within : segment.offset + within + BLOCK_SIZE]
