"""An open image file as a device: one part of it, or the parts of a CD image joined."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from p2pcloop.errors import storage_error
from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.boot_parameters import Root
from p2pcloop.formats.chunk_table import Chunk, ChunkPage
from p2pcloop.formats.cloop import CloopFile, open_cloop
from p2pcloop.formats.filesystem import PROBE_SIZE, check_whole
from p2pcloop.formats.holes import next_data
from p2pcloop.formats.index import IndexHeader, build_index, open_index, read_map, read_page
from p2pcloop.making.build import Progress, can_stay, check_image_size, index_cloop, index_raw
from p2pcloop.making.image_file import Part
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

ALIGNMENT = 1 << 20
"""Where the parts of a device begin: at multiples of this, which is a multiple of every chunk's
size and of what a guest reads ahead."""


class OpenPart:
    """One part, open. Reads from any thread.

    Attributes:
        format: "raw" or "cloop" with its version.
        size: bytes of its device; not rounded up to whole blocks.
        start: its first byte on the joined device.
    """

    def __init__(
        self, path: Path, part: Part, start: int, stack: ExitStack, name: Path | None = None
    ) -> None:
        """Open it; `stack` closes it, and `name` is for messages.

        Raises:
            FormatError: a cloop that is damaged.
        """
        self._extents = part.extents
        self._what = (
            tr("{part} on {name}", part=part.name, name=name or path)
            if part.name
            else f"{name or path}"
        )
        self._cloop: CloopFile | None = None
        self.format = part.kind
        self.start = start
        if part.kind == "cloop":
            # A whole file has the length that it has now, not that of the first look.
            where = part.extents if part.name else None
            self._cloop = stack.enter_context(open_cloop(path, where, name))
            self.size = self._cloop.index.header.size
            self.format = f"cloop {self._cloop.index.version}"
        else:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._fd)
            self.size = part.extents.size

    def read(self, offset: int, length: int) -> bytes:
        """Read from its device; fewer bytes if the file became shorter.

        Raises:
            FormatError: a block of a cloop is damaged.
        """
        if self._cloop is not None:
            return self._cloop.read(offset, length)
        return self._extents.pread(self._fd, length, offset)

    def next_data(self, offset: int) -> int:
        """Return the next byte of its device that is not known to be zero, or its end.

        To be called on one thread only.

        Raises:
            OSError: the system refused.
        """
        if self._cloop is not None or len(self._extents) != 1:
            return offset
        start = self._extents.start
        return min(max(offset, next_data(self._fd, start + offset) - start), self.size)

    def check_whole(self) -> None:
        """Compare the size that its file system claims with its length.

        Raises:
            FormatError: it is cut off, or damaged.
        """
        check_whole(self.read(0, min(PROBE_SIZE, self.size)), self.size, self._what)

    def why_not_in_place(self) -> str:
        """Why its bytes cannot be chunks of an index in place; "" if they can."""
        if self._cloop is not None and not can_stay(self._cloop):
            size = self._cloop.index.header.block_size
            return tr(
                "{what} has blocks of {size} bytes, which are not whole blocks of 4 KiB",
                what=self._what,
                size=size,
            )
        if len(self._extents) > 1:
            return tr(
                "{what} lies in {extents_count} places",
                what=self._what,
                extents_count=len(self._extents),
            )
        return ""

    def index(self, progress: Progress) -> bytes:
        """Return the index of its device in place; offsets count from the part's first byte."""
        if self._cloop is not None:
            return index_cloop(self._cloop, self._extents.size, progress)
        return index_raw(self.read, self.size, progress, self.next_data)

    @property
    def pack_start(self) -> int:
        """The offset of its first byte in the image file."""
        return self._extents.start


class OpenImage:
    """An image file, open. Reads from any thread.

    Attributes:
        size: bytes of the device; not rounded up to whole blocks.
    """

    def __init__(self, path: Path, parts: tuple[Part, ...], name: Path | None = None) -> None:
        """Open the parts; `name` is the file's name for messages, if it is not `path`.

        Raises:
            FormatError: a cloop that is damaged.
            NotHereError, StorageError: the file is gone, or the system refused.
        """
        with ExitStack() as stack:
            self._parts: list[OpenPart] = []
            self.size = 0
            try:
                for part in parts:
                    start = -(-self.size // ALIGNMENT) * ALIGNMENT
                    self._parts.append(OpenPart(path, part, start, stack, name))
                    self.size = start + self._parts[-1].size
            except OSError as err:
                raise storage_error(tr("cannot read {name}", name=name or path), err) from err
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def formats(self) -> tuple[str, ...]:
        """The format of each part."""
        return tuple(part.format for part in self._parts)

    @property
    def roots(self) -> tuple[Root, ...]:
        """The place of each part on the device, from base to top; empty if there is only one."""
        if len(self._parts) == 1:
            return ()
        return tuple(Root(part.start, check_image_size(part.size)) for part in self._parts)

    def read(self, offset: int, length: int) -> bytes:
        """Read from the device: the parts, and zeros between them. Errors as of `OpenPart.read`."""
        found, at, end = [], offset, offset + length
        for part in self._parts:
            if at < min(part.start, end):
                found.append(bytes(min(part.start, end) - at))
                at += len(found[-1])
            stop = min(end, part.start + part.size)
            if part.start <= at < stop:
                found.append(part.read(at - part.start, stop - at))
                if len(found[-1]) < stop - at:
                    break
                at = stop
        return found[0] if len(found) == 1 else b"".join(found)

    def next_data(self, offset: int) -> int:
        """The next byte of the device that is not known to be zero; see `OpenPart.next_data`."""
        for part in self._parts:
            if offset < part.start + part.size:
                at = part.start + part.next_data(max(0, offset - part.start))
                if at < part.start + part.size:
                    return at
        return self.size

    def check_whole(self) -> None:
        """Compare the size that each file system claims with the length of its part.

        Raises:
            FormatError: one is cut off, or damaged.
        """
        for part in self._parts:
            part.check_whole()

    def why_not_in_place(self) -> str:
        """Why it cannot be seeded in place; "" if it can."""
        return next(filter(None, (part.why_not_in_place() for part in self._parts)), "")

    def index(self, pack_length: int, progress: Progress) -> bytes:
        """Return the index of the device in place, which must be possible.

        Args:
            pack_length: bytes of the image file.
            progress: called with the bytes of the device that are done.

        Raises:
            FormatError: it is damaged.
        """
        first = self._parts[0]
        if len(self._parts) == 1 and first.pack_start == 0:
            return first.index(progress)
        runs: list[Run] = []
        chunks: list[Chunk] = []
        for part in self._parts:

            def show(done: int, start: int = part.start) -> None:
                progress(start + done)

            _append(runs, chunks, part.index(show), part.start // BLOCK_SIZE, part.pack_start)
        size = check_image_size(self.size)
        return build_index(runs, chunks, image_size=size, pack_length=pack_length)


def _append(
    runs: list[Run], chunks: list[Chunk], index: bytes, block: int, pack_start: int
) -> None:
    """Add an index, for a device from `block` on and a pack from `pack_start` on."""
    header = open_index(index)
    first = len(chunks)
    for run in read_map(header, index[header.length : header.length + header.map_length]):
        chunk = run.chunk if run.chunk == ZERO_CHUNK else run.chunk + first
        runs.append(replace(run, start=run.start + block, chunk=chunk))
    for page in range(len(header.page_hashes)):
        entries = _page(header, page, index)
        chunks += (replace(entry, offset=entry.offset + pack_start) for entry in entries)


def _page(header: IndexHeader, page: int, index: bytes) -> ChunkPage:
    offset, length = header.page_extent(page)
    return read_page(header, page, index[offset : offset + length])
