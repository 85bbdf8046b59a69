"""Makes the ext4 file system in a files overlay, the second device of a guest.

`mke2fs` makes it here, not in the guest at its first boot. So an overlay appears whole, under its
name or not at all (`Overlay.create`), and a guest need not tell a new overlay from a damaged one.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from p2pcloop.errors import GuestError, storage_error
from p2pcloop.formats.holes import next_data
from p2pcloop.formats.overlay import Overlay
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr
from p2pcloopd.programs import find_program

_JOURNAL_MIB = 16
"""The journal's MiB. For 8 GiB mke2fs would choose 128; a journal is overwritten again and again,
and would be most of a small overlay."""

_COPY_SIZE = 1 << 20


def make_file_system(overlay: Overlay, folder: Path) -> None:
    """Write an empty ext4 to the device of a new overlay.

    Args:
        overlay: takes the blocks that are not zeros.
        folder: where mke2fs works; it takes some MB of disk.

    Raises:
        NeedsPackageError: mke2fs is not installed.
        GuestError: it failed.
        StorageError: no space, or the disk failed.
    """
    program = find_program("mke2fs", "e2fsprogs")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.ftruncate(file.fileno(), overlay.image_size)
            _run_mke2fs(program, file.fileno())
            for offset, block in _blocks(file.fileno()):
                overlay.write(offset, [memoryview(block)])
    except OSError as err:
        raise storage_error(tr("cannot make a file system in {path}", path=folder), err) from err


def _run_mke2fs(program: Path, fd: int) -> None:
    done = subprocess.run(
        [
            *(program, "-q", "-F", "-t", "ext4", "-b", str(BLOCK_SIZE), "-m", "0"),
            *("-J", f"size={_JOURNAL_MIB}"),
            # It never grows; the blocks reserved for growth would take 4 MB.
            *("-O", "^resize_inode"),
            # The device is zeros: no kernel has to write them again.
            *("-E", "assume_storage_prezeroed=1,nodiscard,root_owner=0:0"),
            f"/proc/self/fd/{fd}",
        ],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise GuestError(tr("mke2fs made no file system: {stderr}", stderr=done.stderr.strip()))


def _blocks(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a sparse file that are not zeros, with their offsets."""
    zeros = bytes(BLOCK_SIZE)
    end = os.fstat(fd).st_size
    offset = _next_block(fd, 0)
    while offset < end:
        data = os.pread(fd, _COPY_SIZE, offset)
        for at in range(0, len(data), BLOCK_SIZE):
            if (block := data[at : at + BLOCK_SIZE]) != zeros:
                yield offset + at, block
        offset = _next_block(fd, offset + len(data))


def _next_block(fd: int, offset: int) -> int:
    """Return where the next block begins that is not wholly in a hole, or the end of the file."""
    found = next_data(fd, offset)
    return found - found % BLOCK_SIZE
