"""The overlay `mine.delta`: a user's local writable layer in one sparse file.

The format, and why a crash at any instant leaves a valid overlay: docs/formats/overlay.md.

All methods run on one thread; only the callable that `Overlay.prepare_flush` returns may run on
others, while that thread goes on writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from p2pcloop.errors import BusyError, FormatError
from p2pcloop.formats.overlay_file import OverlayFile
from p2pcloop.formats.overlay_flush import Flusher
from p2pcloop.formats.overlay_header import HEADER_SIZE, PAGE_SIZE, Header
from p2pcloop.formats.overlay_remains import Remains
from p2pcloop.formats.overlay_states import LOAD_SIZE, Run, State, StateTable, unpack_page
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

__all__ = ["Overlay", "OverlayInfo", "Run", "State"]

_RESTORE = "put back a copy of it, or give another file name to start anew"


@dataclass(frozen=True, slots=True)
class OverlayInfo:
    """The image that an overlay was made on, and how full it is.

    Attributes:
        mode: "block": its blocks lie over the image's; "files": they are a device of their own,
            with a file system of changed files.
        image_size: bytes of the device.
        image_id: of the image below: SHA-256 of its size and its layers' ids.
        manifest_id: SHA-256 of the image's manifest, or None.
        name: `@key/label` of the image, or empty.
        created: seconds since 1970.
        data_blocks: blocks of 4096 bytes that are in this file.
        zero_blocks: blocks that read as zeros instead of the image's content.
        allocated: bytes of disk that the file takes, its tables included.
        in_use: a process has it open for writing.
    """

    mode: str
    image_size: int
    image_id: bytes
    manifest_id: bytes | None
    name: str
    created: int
    data_blocks: int
    zero_blocks: int
    allocated: int
    in_use: bool = False


class Overlay:
    """An open overlay. It is locked: no other process writes it as long as it is open.

    After a flush whose fdatasync failed it refuses reads, writes and flushes with a
    `StorageError` (why: `Flusher`). Opened again, it has the state of the last good flush.
    """

    def __init__(self, file: OverlayFile, header: Header, *, volatile: bool = False) -> None:
        """To be made by `create`, `create_temporary` or `open`.

        Args:
            file: open and locked.
            header: its header, checked.
            volatile: it ends with this process, so flushes do nothing.
        """
        self._file = file
        self._header = header
        self._volatile = volatile
        self._data_offset = header.data_offset
        self._table = StateTable(header.block_count, header.data_offset - HEADER_SIZE)
        self._flusher = Flusher(file, self._table)
        self._remains: Remains | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        image_id: bytes,
        image_size: int,
        manifest_id: bytes | None = None,
        name: str = "",
        fill: Callable[[Self], None] | None = None,
    ) -> Self:
        """Make an overlay under a name that is free; a crash leaves all of it or nothing.

        Args:
            path: the file to make.
            image_id: of the image below: SHA-256 of its size and its layers' ids.
            image_size: bytes of the device, a multiple of 4096, at most 16 TiB.
            manifest_id: SHA-256 of the image's manifest, kept for publishing.
            name: `@key/label` of the image, at most 256 bytes, kept for publishing.
            fill: makes a files overlay: called to write the first content of its device.

        Raises:
            StorageError: the file exists (errno EEXIST) or cannot be made.
        """
        header = Header(
            image_size, image_id, manifest_id, name, int(time.time()), files=fill is not None
        )
        raw = header.pack()
        file = OverlayFile.create_hidden(path.parent)
        hidden = file.path
        try:
            file.reserve(header.file_size, allocated=header.data_offset)
            file.write(0, [raw])
            overlay = cls(file, header)
            if fill is not None:
                fill(overlay)
                overlay.prepare_flush()()
            file.publish(path)
        except BaseException:
            file.close()
            hidden.unlink(missing_ok=True)
            raise
        return overlay

    @classmethod
    def create_temporary(
        cls,
        folder: Path,
        *,
        image_id: bytes,
        image_size: int,
        fill: Callable[[Self], None] | None = None,
        remains: Remains | None = None,
    ) -> Self:
        """Make an overlay without a name, for this boot only; its room is free when it closes.

        Args:
            folder: on the disk that it may use.
            image_id, image_size, fill: as for `create`.
            remains: as of `leave`; the overlay that was left there goes on, if there is one.

        Raises:
            StorageError: the folder cannot be written.
        """
        header = Header(image_size, image_id, None, "", int(time.time()), files=fill is not None)
        if remains is None:
            file = OverlayFile.create_hidden(folder)
            file.path.unlink()
        else:
            file = remains.content
        try:
            overlay = cls(file, header, volatile=True)
            if remains is None or not remains.is_of(header.block_count):
                file.reserve(0, allocated=0)
                file.reserve(header.file_size, allocated=0)
                if fill is not None:
                    fill(overlay)
            if remains is not None:
                overlay.leave(remains)
        except BaseException:
            file.close()
            raise
        return overlay

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        image_id: bytes | None,
        read_only: bool = False,
        mode: str | None = "block",
    ) -> Self:
        """Open an overlay and check it whole; a refused file stays unchanged.

        Args:
            path: the file.
            image_id: of the image that it must have been made on; None for any.
            read_only: share it with other readers; it must not be written then.
            mode: its mode must be this one; None for either.

        Raises:
            NotHereError: there is no such file.
            FormatError: it is no overlay, one of another version, or a damaged one.
            MismatchError: it was made on another image, or is of the other mode.
            BusyError: it is open elsewhere.
            StorageError: the system refused.
        """
        file = OverlayFile.open(path, read_only=read_only)
        try:
            overlay = cls(file, read_header(file))
            overlay._header.check_match(path, image_id, mode)
            overlay._load_states()
        except BaseException:
            file.close()
            raise
        return overlay

    @classmethod
    def inspect(cls, path: Path) -> OverlayInfo:
        """Read the facts of an overlay, even while a guest writes it.

        Its states are then those of the last flush. The header never changes. If a page of states
        is just being written, each byte is an old or a new one, and both are right.

        Raises:
            NotHereError, FormatError, StorageError: as for `open`.
        """
        file = OverlayFile.open(path, read_only=True, locked=False)
        with closing(file):
            overlay = cls(file, read_header(file))
            overlay._load_states()
            info = overlay.info()
            try:
                file.lock(shared=True)
            except BusyError:
                return replace(info, in_use=True)
            return info

    def _load_states(self) -> None:
        """Read the state table into memory and check it."""
        size = self._table.size
        for start in range(0, size, LOAD_SIZE):
            part = bytearray(min(LOAD_SIZE, size - start))
            self._file.read_into(HEADER_SIZE + start, [part])
            try:
                self._table.load(start, part)
            except FormatError as err:
                raise FormatError(
                    tr("{path} is damaged: {err}", path=self.path, err=err), hint=_RESTORE
                ) from err

    def leave(self, remains: Remains) -> None:
        """Leave to a successor what it has to know, if this process is killed; and take what its
        own predecessor left, which had the same overlay open.

        Raises:
            StorageError: the disk refused.
        """
        blocks = self._header.block_count
        if remains.is_of(blocks):
            for first, count, state in remains.runs():
                self._table.set(first, count, state)
        else:
            # The file has the states of all others.
            remains.begin(blocks, self._states_set() if self._volatile else ())
        self._remains = remains

    def _states_set(self) -> Iterator[Run]:
        for first in range(0, self._header.block_count, LOAD_SIZE):
            count = min(LOAD_SIZE, self._header.block_count - first)
            for run in self._table.runs(first, count):
                if run[2] is not State.ABSENT:
                    yield run

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self._file.path

    @property
    def image_size(self) -> int:
        """Bytes of the device."""
        return self._header.image_size

    def info(self) -> OverlayInfo:
        """The image that it was made on, and how full it is; reads the whole state table."""
        header, counts = self._header, self._table.tally()
        return OverlayInfo(
            mode=header.mode,
            image_size=header.image_size,
            image_id=header.image_id,
            manifest_id=header.manifest_id,
            name=header.name,
            created=header.created,
            data_blocks=counts[State.DATA],
            zero_blocks=counts[State.ZERO],
            allocated=self._file.allocated,
        )

    def state(self, block: int) -> State:
        """The state of one block: where its content is."""
        return self._table[block]

    def runs(self, first: int, count: int) -> Sequence[Run]:
        """Cut `count` blocks (at least 1, inside the device) into runs of one state, in order."""
        return self._table.runs(first, count)

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` from byte `offset` of the device; all blocks touched have state DATA.

        Raises:
            StorageError: the disk failed, now or at an earlier flush.
        """
        self._flusher.check()
        self._file.read_into(self._data_offset + offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Keep whole blocks (`offset` and the sum of lengths are multiples of 4096).

        Raises:
            StorageError: no space or a failing disk. Blocks that were not DATA are unchanged;
                others may hold old and new bytes, as on any disk.
        """
        self._flusher.check()
        size = sum(map(len, views))
        assert not offset % BLOCK_SIZE and not size % BLOCK_SIZE, "whole blocks only"
        assert offset >= 0 and offset + size <= self._header.image_size, "inside the device"
        self._file.write(self._data_offset + offset, views)
        self._flusher.writes += 1
        self._table.set(offset // BLOCK_SIZE, size // BLOCK_SIZE, State.DATA)
        if self._remains is not None:
            self._remains.note(offset // BLOCK_SIZE, size // BLOCK_SIZE, State.DATA)

    def zero(self, first: int, count: int) -> None:
        """Make `count` blocks read as zeros; their disk room, if any, is freed.

        The room is freed at once, before the state is durable. After a crash until then the blocks
        have the old content, or read as zeros; both are right.

        Raises:
            StorageError: the disk failed; the blocks read as zeros all the same.
        """
        self._flusher.check()
        assert first >= 0 and first + count <= self._header.block_count, "inside the device"
        was_present = self._table.set(first, count, State.ZERO)
        if self._remains is not None:
            self._remains.note(first, count, State.ZERO)
        if was_present:
            self._file.punch(self._data_offset + first * BLOCK_SIZE, count * BLOCK_SIZE)

    def prepare_flush(self) -> Callable[[], None]:
        """Note all writes and zeroing so far; the returned call makes them durable.

        The call blocks on disk and may run on any thread while further writes go on. Several calls
        may run at once and in any order; each makes all waiting changes durable, also those of the
        others. If it fails other than in fdatasync (no space), the next one tries again.

        Raises:
            StorageError: by the call returned.
        """
        if self._volatile:
            return _nothing
        return self._flusher.prepare()

    def prepare_copy(self) -> Callable[[Path], Path]:
        """Prepare to write all that it holds now into a new overlay, for a reader.

        Returns:
            What does that, on any thread: it makes a file in a folder, without a sync, and returns
            its path. What is written to this overlay meanwhile makes the copy worthless, and harms
            nothing else. It raises StorageError if there is no space, or the disk fails; then no
            copy is left.

        Raises:
            StorageError: an earlier flush failed.
        """
        self._flusher.check()
        header = self._header
        table = StateTable(header.block_count, self._table.size)
        for start in range(0, header.block_count, LOAD_SIZE):
            for first, count, state in self.runs(start, min(LOAD_SIZE, header.block_count - start)):
                if state != State.ABSENT:
                    table.set(first, count, state)
        return partial(self._copy, table)

    def _copy(self, table: StateTable, folder: Path) -> Path:
        header = self._header
        copy = OverlayFile.create_hidden(folder)
        try:
            copy.reserve(header.file_size, allocated=0)
            copy.copy_data(self._file)
            copy.write(0, [header.pack()])
            for page, packed in table.take_changed().items():
                copy.write(HEADER_SIZE + page * PAGE_SIZE, [unpack_page(packed)])
        except BaseException:
            copy.path.unlink(missing_ok=True)  # who wanted it may have given it up
            raise
        finally:
            copy.close()
        return copy.path

    def close(self) -> None:
        """Wait for a running flush, then close the file; changes not flushed may be lost."""
        self._flusher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nothing() -> None:
    """Flush an overlay that does not outlive its process."""


def read_header(file: OverlayFile) -> Header:
    """Read and check a file's header and its length."""
    size = file.size
    raw = bytearray(min(size, HEADER_SIZE))
    file.read_into(0, [raw])
    try:
        header = Header.unpack(bytes(raw))
    except FormatError as err:
        raise FormatError(
            tr("{path} is not a usable overlay: {err}", path=file.path, err=err),
            hint=err.hint or _RESTORE,
        ) from err
    if size != header.file_size:
        raise FormatError(
            tr(
                "{path} is {size} bytes long where {file_size} belong: it was cut off, or"
                " copied in part",
                path=file.path,
                size=size,
                file_size=header.file_size,
            ),
            hint="copy it again, whole; `cp --sparse=always` keeps it small",
        )
    return header
