"""Requests to the block device: well-formed ones in any layout, and all that must be refused."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.protocol.virtio_blk import (
    MAX_DATA,
    MAX_RANGE_SECTORS,
    MAX_RANGES,
    Feature,
    Kind,
    RefusedError,
    Request,
    Status,
    config_space,
    offered_features,
    plan,
)
from p2pcloop.protocol.virtqueue import Chain, VirtqueueError
from tests.support.memory_device import MemoryDevice

SIZE = 64 * 4096


def view(content: bytes | int) -> memoryview:
    return memoryview(bytearray(content))


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def ranges(*items: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *item) for item in items)


def carry_out(device: MemoryDevice, sent: bytes, wanted: int = 0) -> bytes:
    """Carry a request out and return what the driver finds, status byte included."""
    answer = view(wanted + 1)
    request = Request(Chain(0, [view(sent)], [answer]))
    assert request.written == wanted + 1
    try:
        plan(request, device)()
    except RefusedError as refusal:
        request.finish(refusal.status)
    else:
        request.finish(Status.OK)
    return bytes(answer)


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(bytes(n % 251 for n in range(SIZE)), serial=b"0123456789abcdefghijk")


def test_read(device: MemoryDevice) -> None:
    answer = carry_out(device, header(Kind.IN, 3), 1024)
    assert answer == device.content[1536:2560] + bytes([Status.OK])


def test_write(device: MemoryDevice) -> None:
    assert carry_out(device, header(Kind.OUT, SIZE // 512 - 1) + b"x" * 512) == bytes([Status.OK])
    assert device.content[-513:] == bytes([(SIZE - 513) % 251]) + b"x" * 512


def test_serial_is_cut_or_padded(device: MemoryDevice) -> None:
    assert carry_out(device, header(Kind.GET_ID), 20) == b"0123456789abcdefghij\0"
    assert carry_out(device, header(Kind.GET_ID), 4) == b"0123\0"
    device.serial = b"short"
    assert carry_out(device, header(Kind.GET_ID), 20) == b"short" + bytes(16)


def test_ranges(device: MemoryDevice) -> None:
    sent = header(Kind.DISCARD) + ranges((8, 8, 0), (32, 16, 0))
    assert carry_out(device, sent) == bytes([Status.OK])
    sent = header(Kind.WRITE_ZEROES) + ranges((1, 1, 0), (64, 8, 1))
    assert carry_out(device, sent) == bytes([Status.OK])
    assert device.calls == [
        ("discard", 4096, 4096),
        ("discard", 16384, 8192),
        ("write_zeroes", 512, 512),
        ("write_zeroes_unmap", 32768, 4096),
    ]


END = SIZE // 512


@pytest.mark.parametrize(
    ("sent", "wanted", "status"),
    [
        (header(Kind.IN), 0, Status.IOERR),
        (header(Kind.IN), 511, Status.IOERR),
        (header(Kind.IN) + b"surplus", 512, Status.IOERR),
        (header(Kind.IN, END), 512, Status.IOERR),
        (header(Kind.IN, END - 1), 1024, Status.IOERR),
        (header(Kind.IN, (1 << 64) - 1), 512, Status.IOERR),
        (header(Kind.IN, 1 << 55), 512, Status.IOERR),
        (header(Kind.IN), MAX_DATA + 512, Status.IOERR),
        (header(Kind.OUT), 0, Status.IOERR),
        (header(Kind.OUT) + bytes(513), 0, Status.IOERR),
        (header(Kind.OUT) + bytes(512), 1, Status.IOERR),
        (header(Kind.OUT, END) + bytes(512), 0, Status.IOERR),
        (header(Kind.DISCARD), 0, Status.IOERR),
        (header(Kind.DISCARD) + ranges((0, 8, 0))[:-1], 0, Status.IOERR),
        (header(Kind.DISCARD) + ranges((0, 8, 0)), 1, Status.IOERR),
        (header(Kind.DISCARD) + ranges((0, 8, 1)), 0, Status.UNSUPP),
        (header(Kind.DISCARD) + ranges((0, 0, 0)), 0, Status.IOERR),
        (header(Kind.DISCARD) + ranges((0, 8, 0), (END - 1, 2, 0)), 0, Status.IOERR),
        (header(Kind.DISCARD) + ranges(*[(0, 8, 0)] * (MAX_RANGES + 1)), 0, Status.IOERR),
        (header(Kind.WRITE_ZEROES) + ranges((0, MAX_RANGE_SECTORS + 1, 0)), 0, Status.IOERR),
        (header(Kind.WRITE_ZEROES) + ranges((0, 8, 2)), 0, Status.UNSUPP),
        (header(Kind.WRITE_ZEROES) + ranges((1 << 63, 8, 0)), 0, Status.IOERR),
        (header(2), 0, Status.UNSUPP),
        (header(14) + bytes(16), 512, Status.UNSUPP),
        (header(0xFFFFFFFF), 0, Status.UNSUPP),
    ],
)
def test_refused(device: MemoryDevice, sent: bytes, wanted: int, status: Status) -> None:
    assert carry_out(device, sent, wanted) == bytes(wanted) + bytes([status])
    assert device.calls == []


@pytest.mark.parametrize("kind", [Kind.OUT, Kind.DISCARD, Kind.WRITE_ZEROES])
def test_read_only(kind: Kind) -> None:
    device = MemoryDevice(SIZE, read_only=True)
    assert carry_out(device, header(kind) + bytes(512)) == bytes([Status.IOERR])
    assert carry_out(device, header(Kind.IN), 512) == bytes(513)
    features = Feature(offered_features(device))
    assert Feature.RO in features
    assert not features & (Feature.DISCARD | Feature.WRITE_ZEROES)


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([header(0)], []), ([], [1]), ([header(0)[:15]], [1]), ([b"\0" * 7, b"\0" * 8], [1])],
)
def test_without_header_or_status(readable: list[bytes], writable: list[int]) -> None:
    with pytest.raises(VirtqueueError):
        Request(Chain(0, list(map(view, readable)), list(map(view, writable))))


def test_config_space(device: MemoryDevice) -> None:
    config = config_space(device)
    assert len(config) == 60
    assert struct.unpack_from("<Q", config, 0) == (SIZE // 512,)
    assert struct.unpack_from("<I", config, 12) == (126,)
    assert struct.unpack_from("<IBBHI", config, 20) == (512, 3, 0, 8, 128)
    assert struct.unpack_from("<HIII", config, 34) == (16, 1 << 21, 32, 8)
    assert struct.unpack_from("<IIB", config, 48) == (1 << 21, 32, 1)
    writable = Feature.DISCARD | Feature.WRITE_ZEROES | Feature.FLUSH | Feature.VERSION_1
    assert offered_features(device) & writable == writable


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    """Split content at sorted places, without empty pieces."""
    places = [0, *sorted({c for c in cuts if 0 < c < len(content)}), len(content)]
    return [content[a:b] for a, b in pairwise(places)]


@settings(max_examples=100, deadline=None)
@given(
    sector=st.integers(0, 60),
    sectors=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 2048), max_size=6),
    write=st.booleans(),
)
def test_any_layout_of_buffers(sector: int, sectors: int, cuts: list[int], *, write: bool) -> None:
    """VERSION_1: header, data and status may be spread over buffers in any way (2.7.4)."""
    before = bytes(n % 251 for n in range(8 * 4096))
    device = MemoryDevice(before)
    length = sectors * 512
    data = bytes([7]) * length
    sent = header(Kind.OUT if write else Kind.IN, sector) + (data if write else b"")
    wanted = bytes([0xFF]) * ((0 if write else length) + 1)
    readable, writable = list(map(view, cut(sent, cuts))), list(map(view, cut(wanted, cuts)))
    request = Request(Chain(0, list(readable), list(writable)))
    plan(request, device)()
    request.finish(Status.OK)
    answer = b"".join(writable)
    start, end = sector * 512, sector * 512 + length
    if write:
        assert answer == b"\0"
        assert device.content == before[:start] + data + before[end:]
    else:
        assert answer == before[start:end] + b"\0"


@settings(max_examples=200, deadline=None)
@given(
    readable=st.lists(st.binary(min_size=1, max_size=40), max_size=4),
    writable=st.lists(st.integers(1, 600), max_size=3),
    kind=st.sampled_from([*Kind, 3]) | st.integers(0, (1 << 32) - 1),
)
def test_any_bytes_are_carried_out_or_refused(
    readable: list[bytes], writable: list[int], kind: int
) -> None:
    """A request raises nothing but the two errors and never leaves the device."""
    device = MemoryDevice(4096)
    chain = Chain(0, [view(struct.pack("<I", kind)), *map(view, readable)], [*map(view, writable)])
    try:
        request = Request(chain)
        plan(request, device)()
    except (VirtqueueError, RefusedError):
        assert device.calls == []
