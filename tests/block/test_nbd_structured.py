"""The NBD front end where structured replies and `base:allocation` were agreed on."""

from __future__ import annotations

import os
from pathlib import Path

from p2pcloop.errors import CorruptError
from p2pcloopd.block.nbd_calls import MAX_EXTENTS
from p2pcloopd.block.nbd_read import SPARSE_READ
from p2pcloopd.block.nbd_server import MAX_INLINE_CHANGE
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    HOLE_AND_ZERO,
    NO_HOLE,
    READ,
    REQ_ONE,
    WRITE,
    WRITE_ZEROES,
    serving,
)

KIB = 1 << 10
MIB = 1 << 20


def sparse_device() -> MemoryDevice:
    """64 KiB of data, a hole of 64 KiB, 64 KiB of data, and a hole up to 1 MiB."""
    data = os.urandom(128 * KIB)
    return MemoryDevice(data[: 64 * KIB] + bytes(64 * KIB) + data[64 * KIB :] + bytes(832 * KIB))


async def test_reads_tell_holes(tmp_path: Path) -> None:
    device = sparse_device()
    content = bytes(device.content)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        assert await client.ask(READ, 512, 1024) == [("data", 512, content[512:1536])]
        assert await client.ask(READ, 0, 64 * KIB) == [("data", 0, content[: 64 * KIB])]
        assert await client.ask(READ, 64 * KIB, 64 * KIB) == [("hole", 64 * KIB, 64 * KIB)]
        assert await client.ask(READ, 32 * KIB, 256 * KIB) == [
            ("data", 32 * KIB, content[32 * KIB : 64 * KIB]),
            ("hole", 64 * KIB, 64 * KIB),
            ("data", 128 * KIB, content[128 * KIB : 192 * KIB]),
            ("hole", 192 * KIB, 96 * KIB),
        ]


async def test_short_reads_and_unfragmented_ones_are_one_chunk(tmp_path: Path) -> None:
    device = sparse_device()
    content = bytes(device.content)
    backend = MemoryBackend(device)
    short = SPARSE_READ - 512
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        assert await client.ask(READ, 64 * KIB, short) == [("data", 64 * KIB, bytes(short))]
        assert await client.ask(READ, 0, MIB, flags=DF) == [("data", 0, content)]
        hole = [("hole", 192 * KIB, 64 * KIB)]
        assert await client.ask(READ, 192 * KIB, 64 * KIB, flags=DF) == hole


async def test_data_between_holes_that_is_missing_is_asked_for_at_once(tmp_path: Path) -> None:
    device = sparse_device()
    device.withhold(0, 4 * KIB)
    device.withhold(128 * KIB, 4 * KIB)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        await client.send(READ, 0, 256 * KIB)
        await backend.wait_asked(1)
        assert [need.offset for need in backend.asked[0].ranges] == [0, 128 * KIB]
        await backend.fetch(0, 256 * KIB)
        _, chunks = await client.chunks()
        assert [chunk[0] for chunk in chunks] == ["data", "hole", "data", "hole"]
        assert chunks[2] == ("data", 128 * KIB, bytes(device.content[128 * KIB : 192 * KIB]))


async def test_errors_say_why(tmp_path: Path) -> None:
    device = sparse_device()
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        device.failures["read"] = CorruptError("chunk 7 is not what was published")
        told = [("error", 5, "chunk 7 is not what was published")]
        assert await client.ask(READ, 0, 512) == told
        device.withhold(0, 4 * KIB)
        del device.failures["read"]
        await client.send(READ, 0, 64 * KIB)
        await backend.wait_asked(1)
        await backend.fail(CorruptError("nobody has it"))
        assert await client.chunks() == (1, [("error", 5, "nobody has it")])
        ((kind, error, _),) = await client.ask(READ, MIB, 512)
        assert (kind, error) == ("error", 22)


async def test_block_status(tmp_path: Path) -> None:
    device = sparse_device()
    device.withhold(0, MIB)
    backend = MemoryBackend(device)
    whole = [(64 * KIB, 0), (64 * KIB, HOLE_AND_ZERO), (64 * KIB, 0), (832 * KIB, HOLE_AND_ZERO)]
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        assert await client.ask(BLOCK_STATUS, 0, MIB) == [("status", 1, whole)]
        assert await client.ask(BLOCK_STATUS, 512, 64 * KIB) == [
            ("status", 1, [(64 * KIB - 512, 0), (512, HOLE_AND_ZERO)])
        ]
        one = [("status", 1, [(64 * KIB, 0)])]
        assert await client.ask(BLOCK_STATUS, 0, MIB, flags=REQ_ONE) == one
    assert not backend.asked


async def test_block_status_of_a_scattered_range_is_cut_off(tmp_path: Path) -> None:
    device = MemoryDevice((b"x" * 4096 + bytes(4096)) * MAX_EXTENTS)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        ((_, _, extents),) = await client.ask(BLOCK_STATUS, 0, device.size)
        assert extents == [(4096, 0), (4096, HOLE_AND_ZERO)] * (MAX_EXTENTS // 2)


async def test_block_status_has_to_be_agreed_on(tmp_path: Path) -> None:
    async with serving(MemoryBackend(sparse_device()), tmp_path) as served:
        async with served.client() as client:
            assert await client.call(BLOCK_STATUS, 0, 4096) == (22, b"")
            assert await client.call(READ, 0, 512, flags=DF) == (22, b"")


async def test_cache_brings_what_is_missing_and_sends_nothing(tmp_path: Path) -> None:
    device = MemoryDevice(os.urandom(10 * MIB))
    device.withhold(MIB, 4096)
    device.withhold(9 * MIB, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        await client.send(CACHE, 0, 10 * MIB, flags=FUA)
        await backend.wait_asked(1)
        await backend.fetch(MIB, 4096)
        await backend.wait_asked(2)
        assert [need.offset for asked in backend.asked for need in asked.ranges] == [MIB, 9 * MIB]
        await backend.fetch(9 * MIB, 4096)
        assert await client.chunks() == (0, [("done", 0, 0)])
        assert await client.ask(CACHE, MIB, 512) == [("done", 0, 0)]
    piece = MAX_INLINE_CHANGE
    assert device.calls == [
        ("require", 0, piece),
        ("require", piece, piece),
        ("require", 2 * piece, 2 * MIB),
        ("require", MIB, 512),
    ]


async def test_zeros_without_a_hole_are_written(tmp_path: Path) -> None:
    device = MemoryDevice(b"x" * (6 * MIB))
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        assert await client.ask(WRITE_ZEROES, 512, 5 * MIB, flags=NO_HOLE) == [("done", 0, 0)]
    piece = MAX_INLINE_CHANGE
    assert device.calls == [("write", 512, piece - 512), ("write", piece, MIB + 512)]
    assert device.content == b"x" * 512 + bytes(5 * MIB) + b"x" * (MIB - 512)


async def test_fast_zeros_are_fast_or_refused(tmp_path: Path) -> None:
    device = MemoryDevice(b"x" * MIB)
    backend = MemoryBackend(device)
    refused = ("error", 95)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        for offset, length, flags in ((0, 4096, NO_HOLE), (512, 4096, 0), (512, 7168 - 512, 0)):
            ((*told, _),) = await client.ask(WRITE_ZEROES, offset, length, flags=flags | FAST_ZERO)
            assert tuple(told) == refused
        assert device.calls == []
        assert await client.ask(WRITE_ZEROES, 512, 7680, flags=FAST_ZERO) == [("done", 0, 0)]
        assert await client.ask(WRITE_ZEROES, 8192, 4096, flags=FAST_ZERO) == [("done", 0, 0)]
    assert device.content[512:12288] == bytes(11776)


async def test_reads_of_one_batch_are_prepared_for_together(tmp_path: Path) -> None:
    device = sparse_device()
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client(structured=True) as client:
        offsets = [128 * KIB, 0, 160 * KIB]
        await client.stream.send_all(b"".join(client.pack(READ, at, 4096) for at in offsets))
        for cookie, at in enumerate(offsets):
            data = bytes(device.content[at : at + 4096])
            assert await client.chunks() == (cookie, [("data", at, data)])
        assert await client.ask(READ, 0, 4096) == [("data", 0, bytes(device.content[:4096]))]
        await client.send(DISC)
        assert await client.ended()
    ahead = [("ahead", at, 4096) for at in offsets]
    assert device.calls == [*ahead, *(("read", at, 4096) for at in (*offsets, 0))]


async def test_a_flush_covers_what_all_connections_have_written(tmp_path: Path) -> None:
    device = sparse_device()
    async with serving(MemoryBackend(device), tmp_path) as served:
        async with served.client(structured=True) as one, served.client(structured=True) as two:
            await one.send(WRITE, 64 * KIB, payload=b"1" * 4096)
            assert await one.chunks() == (0, [("done", 0, 0)])
            assert await two.ask(READ, 64 * KIB, 4096) == [("data", 64 * KIB, b"1" * 4096)]
            status = [("status", 1, [(4 * KIB, 0), (60 * KIB, HOLE_AND_ZERO)])]
            assert await two.ask(BLOCK_STATUS, 64 * KIB, 64 * KIB) == status
            assert device.durable != device.content
            assert await two.ask(FLUSH) == [("done", 0, 0)]
            assert device.durable == device.content
