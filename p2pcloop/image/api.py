"""The interface of a block device, and the exception for bytes that are not here yet.

A device is plain synchronous code: a call either answers at once, from data on this machine, or
raises `Missing`. Then the caller has the missing ranges fetched and calls again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field, replace
from typing import Protocol

from p2pcloop.frozen import dataclass

PART_SIZE = 1 << 20
"""Bytes asked of p2pcloopd in one call at most, so that other readers do not wait long."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A run of bytes in the content of one torrent (all its files end to end, BEP 3).

    Attributes:
        torrent: the v1 info hash, 20 bytes.
        offset: first byte, counted from the start of the torrent's first file.
        length: bytes, at least 1.
        heal: the bytes on this disk did not match their SHA-256: check them, and fetch them anew.
        instead: once all of these are here, the range is not needed: they hold the same content.
    """

    torrent: bytes
    offset: int
    length: int
    heal: bool = False
    instead: tuple[ByteRange, ...] = field(default=(), compare=False)

    def parts(self) -> Iterator[ByteRange]:
        """The range in parts of at most `PART_SIZE`, in order."""
        for at in range(0, self.length, PART_SIZE):
            yield replace(self, offset=self.offset + at, length=min(PART_SIZE, self.length - at))


class Missing(Exception):  # noqa: N818  an outcome that asks for data, not an error
    """The answer needs bytes that are not here, or not right here.

    Attributes:
        ranges: to fetch before the same call is made again; never empty, without repeats.
    """

    def __init__(self, ranges: Sequence[ByteRange]) -> None:
        self.ranges = tuple(dict.fromkeys(ranges))
        super().__init__(f"{len(self.ranges)} ranges are not here")


def never_missing(missing: Missing) -> None:
    """The supplier of missing ranges for an image all of which is here."""
    raise AssertionError(f"a local image cannot lack anything, yet: {missing}")


class BlockDevice(Protocol):
    """A device of `size` bytes.

    Offsets and lengths are bytes, of any alignment, inside the device: the front ends check every
    request whole before they call. All methods but the callable that `prepare_flush` returns run
    on one thread. A `StorageError` carries the errno that the client is told; any other
    `P2pcloopError` is an I/O error to the client and a line in the log.
    """

    @property
    def size(self) -> int:
        """Bytes; a multiple of 4096."""

    @property
    def read_only(self) -> bool:
        """Whether writes, discards and write-zeroes are refused by the front end."""

    @property
    def serial(self) -> bytes:
        """Up to 20 ASCII bytes that name the content (virtio-blk GET_ID)."""

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` (writable, one byte an item) with the bytes from `offset` on.

        Raises:
            Missing: bytes are not here; the views may be filled in part.
        """

    def copy_decoded(self, offset: int, view: memoryview) -> bool:
        """Fill `view` if that takes no decoding, no disk and no waiting; return whether it did.

        A short cut for small reads: it may return False where `read_into` would answer at once.
        """

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Prepare for reads of these ranges (offset, length), which follow at once.

        If several chunks have to be decoded, threads decode them side by side. Nothing is fetched,
        and errors are left to the reads.
        """

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Cut a range into stretches: bytes of each, and whether it is known to read as zeros.

        Nothing is fetched or decoded for that. Two neighbours are of different kinds. If there are
        very many stretches, the last ones may be left out.
        """

    def require(self, offset: int, length: int) -> None:
        """Check that all of a range is here, without decoding it.

        Raises:
            Missing: bytes are not here.
        """

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Keep the bytes of `views` from `offset` on; durable after the next flush.

        Raises:
            Missing: a block is written in part and its rest is not here; nothing was written.
        """

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool) -> None:
        """Make a range read as zeros; with `may_unmap` its room may be freed.

        Raises:
            Missing: as for `write`.
        """

    def discard(self, offset: int, length: int) -> None:
        """Give up a range: whole blocks of it read as zeros, and their room is freed."""

    def prepare_flush(self) -> Callable[[], None]:
        """Note the writes so far and return a call that makes them durable.

        The returned callable blocks on disk and may run on a worker thread; when it returns,
        everything acknowledged before `prepare_flush` is durable. Its errors are `StorageError`.
        """

    def close(self) -> None:
        """Close the files; flushed writes stay, others may be lost."""
