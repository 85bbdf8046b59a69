"""The virtio block device (virtio 1.2, section 5.2): its configuration and its requests."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from functools import partial

from p2pcloop.errors import P2pcloopError
from p2pcloop.image.api import BlockDevice
from p2pcloop.protocol.virtqueue import Chain, VirtqueueError
from p2pcloop.units import BLOCK_SIZE, SECTOR_SIZE

DEVICE_ID = 2
"""Of a block device (virtio 1.2, section 5.2.1)."""

MAX_SEGMENTS = 126
"""Data buffers in a request, in the configuration; requests with more are served, too."""

MAX_DATA = 64 << 20
"""Bytes that one request may move, so that it does not delay others for long."""

MAX_RANGES = 32
MAX_RANGE_SECTORS = 1 << 21
"""Ranges in a discard or write-zeroes request, and sectors in each (1 GiB)."""

MAX_QUEUES = 16

_OPTIMAL_IO = 64 << 10
"""In the topology. Linux 6.14 and later reads ahead twice this, but at least 128 KiB; without it,
8 MiB, which is far too much over a slow line."""

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
_UNMAP = 1
_ID_SIZE = 20


class Feature(enum.IntFlag):
    """Feature bits of the device type (5.2.3) and VERSION_1 (6)."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    VERSION_1 = 1 << 32


class Kind(enum.IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(enum.IntEnum):
    """The status in the last writable byte of a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class RefusedError(P2pcloopError):
    """A request is refused; the driver gets `status`."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def offered_features(device: BlockDevice) -> int:
    """Return the feature bits of a block device; those of the transport come on top."""
    common = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH | Feature.TOPOLOGY | Feature.MQ
    writing = Feature.RO if device.read_only else Feature.DISCARD | Feature.WRITE_ZEROES
    return int(common | writing | Feature.VERSION_1)


def config_space(device: BlockDevice) -> bytes:
    """Return `struct virtio_blk_config` (5.2.4) up to `write_zeroes_may_unmap`, 60 bytes."""
    blocks = BLOCK_SIZE // SECTOR_SIZE
    return _CONFIG.pack(
        _sectors(device),
        *(0, MAX_SEGMENTS),  # size_max (not offered), seg_max
        *(0, 0, 0),  # geometry: not offered
        SECTOR_SIZE,
        *(blocks.bit_length() - 1, 0, blocks, _OPTIMAL_IO // SECTOR_SIZE),
        *(1, 0),  # writeback (not offered), unused
        MAX_QUEUES,
        *(MAX_RANGE_SECTORS, MAX_RANGES, blocks),  # discard, aligned to blocks
        *(MAX_RANGE_SECTORS, MAX_RANGES, 1),  # write zeroes, may unmap
    )


class Request:
    """A parsed chain.

    Attributes:
        chain: to be pushed when the request is done.
        kind: a `Kind`, or any number that the driver wrote.
        sector: of the first byte of a read or write.
        sent: the driver's data.
        wanted: the buffers to fill for the driver.
        written: bytes of the writable part, status included.
    """

    __slots__ = ("_status", "chain", "kind", "sector", "sent", "wanted", "written")

    def __init__(self, chain: Chain) -> None:
        """Find header, data and status, however they are spread over the buffers.

        Raises:
            VirtqueueError: there is no room for one of them.
        """
        if not chain.writable:
            raise VirtqueueError("a block request without room for its status")
        self.chain = chain
        self.wanted = chain.writable
        self.written = sum(map(len, self.wanted))
        last = self.wanted.pop()
        self._status = last[-1:]
        if len(last) > 1:
            self.wanted.append(last[:-1])
        self.sent = chain.readable
        self.kind, _, self.sector = _HEADER.unpack(_take(self.sent, _HEADER.size))

    def finish(self, status: Status) -> None:
        """Write the status byte."""
        self._status[0] = status

    def release(self) -> None:
        """Let go of the guest's memory, even if a traceback still refers to this request."""
        for view in (*self.sent, *self.wanted, self._status):
            view.release()


def _take(views: list[memoryview], length: int) -> bytes:
    """Remove `length` bytes from the front of `views`."""
    taken = b""
    while len(taken) < length:
        if not views:
            raise VirtqueueError("a block request shorter than its header")
        first = views.pop(0)
        needed = length - len(taken)
        taken += first[:needed]
        if len(first) > needed:
            views.insert(0, first[needed:])
    return taken


def plan(request: Request, device: BlockDevice) -> Callable[[], None]:
    """Check a request whole and return the call on the device that carries it out.

    FLUSH is not planned: the caller knows how to wait for a disk.

    Raises:
        RefusedError: the request is invalid, or not supported.
    """
    match request.kind:
        case Kind.IN:
            offset = _check_transfer(device, request.sector, request.wanted, request.sent)
            return partial(device.read_into, offset, request.wanted)
        case Kind.OUT:
            _check_writable(device)
            offset = _check_transfer(device, request.sector, request.sent, request.wanted)
            return partial(device.write, offset, request.sent)
        case Kind.GET_ID:
            return partial(_fill, request.wanted, device.serial[:_ID_SIZE].ljust(_ID_SIZE, b"\0"))
        case Kind.DISCARD | Kind.WRITE_ZEROES:
            _check_writable(device)
            return _plan_ranges(request, device)
    raise RefusedError(Status.UNSUPP, f"unknown type of request {request.kind}")


def _check_writable(device: BlockDevice) -> None:
    if device.read_only:
        raise RefusedError(Status.IOERR, "a write to a device that is read-only")


def _check_transfer(
    device: BlockDevice, sector: int, data: Sequence[memoryview], other: Sequence[memoryview]
) -> int:
    """Check the range of a read or write; return its offset in bytes."""
    length = sum(map(len, data))
    if other or not length or length % SECTOR_SIZE or length > MAX_DATA:
        raise RefusedError(Status.IOERR, f"a read or write with {length} bytes of data")
    return _check_range(device, sector, length)


def _sectors(device: BlockDevice) -> int:
    """The device in whole sectors: zeros fill the last one if the device ends within it."""
    return -(-device.size // SECTOR_SIZE)


def _check_range(device: BlockDevice, sector: int, length: int) -> int:
    offset = sector * SECTOR_SIZE
    if offset + length > _sectors(device) * SECTOR_SIZE:
        raise RefusedError(
            Status.IOERR, f"{length} bytes at sector {sector}, on a device of {device.size} bytes"
        )
    return offset


def _fill(views: Sequence[memoryview], data: bytes) -> None:
    """Copy as much of `data` as there is room for."""
    for view in views:
        piece = data[: len(view)]
        view[: len(piece)] = piece
        data = data[len(piece) :]


def _plan_ranges(request: Request, device: BlockDevice) -> Callable[[], None]:
    """Plan a discard or write-zeroes request (5.2.6: `discard_write_zeroes` in its data)."""
    length = sum(map(len, request.sent))
    if request.wanted or length % _RANGE.size or not 0 < length <= MAX_RANGES * _RANGE.size:
        raise RefusedError(Status.IOERR, f"a list of ranges of {length} bytes")
    zeroes = request.kind == Kind.WRITE_ZEROES
    calls: list[Callable[[], None]] = []
    for sector, sectors, flags in _RANGE.iter_unpack(b"".join(request.sent)):
        if flags & ~_UNMAP or (flags and not zeroes):
            raise RefusedError(Status.UNSUPP, f"unknown flags {flags:#x} of a range")
        if not 0 < sectors <= MAX_RANGE_SECTORS:
            raise RefusedError(Status.IOERR, f"a range of {sectors} sectors")
        size = sectors * SECTOR_SIZE
        offset = _check_range(device, sector, size)
        if zeroes:
            calls.append(partial(device.write_zeroes, offset, size, may_unmap=bool(flags)))
        else:
            calls.append(partial(device.discard, offset, size))
    return partial(_run, calls)


def _run(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
