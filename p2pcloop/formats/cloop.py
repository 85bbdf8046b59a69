"""Read cloops: compressed block devices in a file, KNOPPIX's own format.

docs/formats/cloop.md has the layouts of all versions that are read. A file is checked whole when it
is opened (header, index, end: formats/cloop_index.py), and each block when it is decoded: it fills
its extent, holds exactly one block of bytes, and matches its checksum where it has one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from p2pcloop.errors import FormatError, NotHereError, storage_error
from p2pcloop.formats.cloop_entries import AGAIN
from p2pcloop.formats.cloop_index import HEADER_SIZE, is_cloop, read_cloop_header, read_exactly
from p2pcloop.formats.codec import decode
from p2pcloop.formats.extents import Extents
from p2pcloop.words import tr

__all__ = ["HEADER_SIZE", "CloopFile", "is_cloop", "open_cloop"]


class CloopFile:
    """An open cloop: random access from any number of threads.

    Attributes:
        path: the file, for messages.
        index: header and offsets, checked.
    """

    def __init__(self, path: Path, fd: int, extents: Extents | None = None) -> None:
        """Take over `fd`; see `open_cloop`."""
        self.path = path
        self._fd = fd
        try:
            self._extents = extents or Extents([(0, os.lseek(fd, 0, os.SEEK_END))])
            self.index = read_cloop_header(self._pread, self._extents.size)
        except FormatError as err:
            raise FormatError(
                tr("{path}: {err}", path=path, err=err), hint=err.hint or AGAIN
            ) from err
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=path), err) from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; then nothing can be read any more."""
        os.close(self._fd)

    def read_block(self, block: int) -> bytes:
        """Return the `index.header.block_size` bytes of a block.

        Raises:
            FormatError: the block is damaged.
            StorageError: the disk refused.
        """
        return self.decode(block, self.read_stored(block))

    def decode(self, block: int, stored: bytes) -> bytes:
        """Return the plain bytes of a block, given what `read_stored` returned.

        Raises:
            FormatError: the block is damaged.
            NeedsPackageError: it is LZO, whose library is not installed.
        """
        try:
            return decode(self.index.codec(block), stored, self.index.header.block_size)
        except FormatError as err:
            raise self._damaged(block, err) from err

    def read_stored(self, block: int) -> bytes:
        """Return the compressed bytes of a block.

        Raises:
            FormatError: the file has become shorter.
            StorageError: the disk refused.
        """
        try:
            return read_exactly(self._pread, *self.index.extent(block))
        except FormatError as err:
            raise self._damaged(block, err) from err

    def _damaged(self, block: int, err: FormatError) -> FormatError:
        return FormatError(
            tr("{path}: block {block}: {err}", path=self.path, block=block, err=err), hint=AGAIN
        )

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the device from `offset` on, all inside the device.

        Raises:
            FormatError: a block is damaged.
            StorageError: the disk refused.
        """
        if offset < 0 or length < 0 or offset + length > self.index.header.size:
            raise ValueError(f"{length} bytes at {offset} are not inside the device")
        if length == 0:
            return b""
        size = self.index.header.block_size
        first, start = divmod(offset, size)
        last = (offset + length - 1) // size
        whole = b"".join(map(self.read_block, range(first, last + 1)))
        return whole[start : start + length]

    def _pread(self, offset: int, length: int) -> bytes:
        """Read `length` bytes, or fewer at the end of the file."""
        try:
            return self._extents.pread(self._fd, length, offset)
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=self.path), err) from err


def open_cloop(path: Path, extents: Extents | None = None, name: Path | None = None) -> CloopFile:
    """Open a cloop file or block device for reading and check header and index.

    Args:
        path: of the cloop, or of the file that holds it.
        extents: its place in that file, if it is not all of it.
        name: for messages, if not `path`.

    Raises:
        FormatError: see `read_cloop_header`.
        NotHereError: no such file.
        StorageError: the system refused.
    """
    try:
        # O_NONBLOCK: to open a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as err:
        raise NotHereError(tr("{path}: no such file", path=path)) from err
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err
    try:
        return CloopFile(name or path, fd, extents)
    except BaseException:
        os.close(fd)
        raise
