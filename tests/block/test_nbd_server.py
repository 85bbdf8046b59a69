"""The NBD front end over real sockets: what is here, what is missing, and every way to end."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcloop.errors import CorruptError, StorageError
from p2pcloop.image.api import Missing
from p2pcloopd.block.nbd_crowd import MAX_CONNECTIONS
from p2pcloopd.block.nbd_server import MAX_INLINE_CHANGE
from p2pcloopd.block.nbd_waiting import MAX_WAITING
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.nbd_client import (
    DISC,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    serving,
)

MIB = 1 << 20


def some_device(size: int = MIB, *, read_only: bool = False) -> MemoryDevice:
    return MemoryDevice(
        b"".join(struct.pack(">Q", n) for n in range(size // 8)), read_only=read_only
    )


class WatchedBackend(MemoryBackend):
    """Tells when a wait for missing bytes was given up."""

    def __init__(self, device: MemoryDevice) -> None:
        super().__init__(device)
        self.given_up = trio.Event()

    async def supply(self, missing: Missing) -> None:
        try:
            await super().supply(missing)
        except trio.Cancelled:
            self.given_up.set()
            raise


async def test_every_command(tmp_path: Path) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        assert await client.call(READ, 512, 1024) == (0, bytes(device.content[512:1536]))
        assert await client.call(WRITE, 4096, payload=b"w" * 8192) == (0, b"")
        assert await client.call(READ, 4096, 8192) == (0, b"w" * 8192)
        assert await client.call(TRIM, 4096, 4096) == (0, b"")
        assert await client.call(WRITE_ZEROES, 8192, 512) == (0, b"")
        assert await client.call(WRITE_ZEROES, 8704, 512, flags=NO_HOLE) == (0, b"")
        assert bytes(device.content[4096:12288]) == bytes(5120) + b"w" * 3072
        assert device.durable != device.content
        assert await client.call(FLUSH) == (0, b"")
        assert device.durable == device.content
        await client.send(DISC)
        assert await client.ended()
    assert device.calls == [
        ("read", 512, 1024),
        ("write", 4096, 8192),
        ("read", 4096, 8192),
        ("discard", 4096, 4096),
        ("write_zeroes_unmap", 8192, 512),
        ("write", 8704, 512),
        ("flush", 0, 0),
    ]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(WRITE, {"payload": b"f" * 512}), (TRIM, {"length": 4096}), (WRITE_ZEROES, {"length": 512})],
)
async def test_fua_is_durable_before_the_reply(
    tmp_path: Path, command: int, arguments: dict[str, Any]
) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        assert await client.call(WRITE, 65536, payload=b"x" * 512) == (0, b"")
        assert await client.call(command, 0, flags=FUA, **arguments) == (0, b"")
        assert device.calls[-1] == ("flush", 0, 0)
        assert device.durable == device.content


async def test_fua_on_a_read_is_ignored(tmp_path: Path) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        assert await client.call(READ, 0, 512, flags=FUA) == (0, bytes(device.content[:512]))
        assert device.calls == [("read", 0, 512)]


async def test_pipelined_requests_are_answered_in_one_go(tmp_path: Path) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        offsets = [n * 4096 % MIB for n in range(1000)]
        await client.stream.send_all(b"".join(client.pack(READ, at, 512) for at in offsets))
        for cookie, at in enumerate(offsets):
            assert await client.reply() == (cookie, 0, bytes(device.content[at : at + 512]))


async def test_largest_requests(tmp_path: Path) -> None:
    device = MemoryDevice(40 * MIB)
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        data = os.urandom(32 * MIB)
        assert await client.call(WRITE, MIB, payload=data) == (0, b"")
        assert await client.call(READ, MIB, 32 * MIB) == (0, data)
        assert await client.call(READ, MIB - 512, 1024) == (0, bytes(512) + data[:512])


async def test_large_trim_and_zeroes_go_in_pieces(tmp_path: Path) -> None:
    device = MemoryDevice(b"x" * (10 * MIB))
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        assert await client.call(WRITE_ZEROES, 512, 9 * MIB) == (0, b"")
        assert device.content == b"x" * 512 + bytes(9 * MIB) + b"x" * (MIB - 512)
        assert await client.call(TRIM, 4096, 10 * MIB - 4096, flags=FUA) == (0, b"")
        assert device.durable == b"x" * 512 + bytes(10 * MIB - 512)
    piece = MAX_INLINE_CHANGE
    assert device.calls == [
        ("write_zeroes_unmap", 512, piece - 512),
        ("write_zeroes_unmap", piece, piece),
        ("write_zeroes_unmap", 2 * piece, MIB + 512),
        ("discard", 4096, piece - 4096),
        ("discard", piece, piece),
        ("discard", 2 * piece, 2 * MIB),
        ("flush", 0, 0),
    ]


async def test_others_get_their_turn_between_the_pieces(tmp_path: Path) -> None:
    device = MemoryDevice(10 * MAX_INLINE_CHANGE)
    seen: set[int] = set()

    async def watch() -> None:
        while True:
            seen.add(len(device.calls))
            await trio.lowlevel.checkpoint()

    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            assert await client.call(WRITE_ZEROES, 0, device.size) == (0, b"")
            nursery.cancel_scope.cancel()
    # Both tasks run once in a round, in any order, so that a look misses one piece at most.
    assert len(seen - {0, 10}) >= 4


async def test_large_zeroes_wait_for_the_rest_of_a_block(tmp_path: Path) -> None:
    device = MemoryDevice(b"x" * (10 * MIB))
    device.withhold(8 * MIB, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        await client.send(WRITE_ZEROES, 0, 8 * MIB + 512)
        await backend.wait_asked(1)
        await backend.fetch(8 * MIB, 4096)
        assert await client.reply() == (0, 0, b"")
    assert device.content == bytes(8 * MIB + 512) + b"x" * (2 * MIB - 512)


async def test_missing_read_holds_up_nobody(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(8192, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        reads = client.pack(READ, 4096, 8192) + client.pack(READ, 0, 512)
        await client.stream.send_all(reads)
        assert await client.reply() == (1, 0, bytes(device.content[:512]))
        await backend.wait_asked(1)
        assert [need.offset for need in backend.asked[0].ranges] == [8192]
        await backend.fetch(8192, 4096)
        assert await client.reply() == (0, 0, bytes(device.content[4096:12288]))


async def test_missing_write_keeps_its_payload(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        await client.send(WRITE, 512, payload=b"a" * 1024, flags=FUA)
        await backend.wait_asked(1)
        for length in (512, 100 << 10, 200 << 10):
            await client.send(WRITE, 65536, payload=b"b" * length)
            assert (await client.reply())[1] == 0
        await backend.fetch(0, 4096)
        assert await client.reply() == (0, 0, b"")
        assert device.durable[512:1536] == b"a" * 1024


async def test_storage_errors_keep_their_meaning(tmp_path: Path) -> None:
    device = some_device()
    device.failures["write"] = StorageError("disk full", errno=errno.ENOSPC)
    device.failures["discard"] = StorageError("quota", errno=errno.EDQUOT)
    device.failures["flush"] = StorageError("bad disk", errno=errno.EIO)
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        assert await client.call(WRITE, 0, payload=bytes(512)) == (28, b"")
        assert await client.call(TRIM, 0, 4096) == (28, b"")
        assert await client.call(FLUSH) == (5, b"")
        assert await client.call(WRITE_ZEROES, 0, 512, flags=FUA) == (5, b"")
        assert await client.call(READ, 0, 512) == (0, bytes(512))


async def test_data_that_can_never_be_had_is_an_io_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        await client.send(READ, 0, 512)
        await backend.wait_asked(1)
        await backend.fail(CorruptError("the publisher's own data is inconsistent"))
        assert await client.reply() == (0, 5, b"")
        assert "the publisher's own data is inconsistent" in caplog.text
        device.failures["read"] = CorruptError("inline")
        assert await client.call(READ, 8192, 512) == (5, b"")


async def test_read_only_device(tmp_path: Path) -> None:
    device = some_device(read_only=True)
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as client:
        assert await client.call(WRITE, 0, payload=bytes(512)) == (1, b"")
        assert await client.call(TRIM, 0, 4096) == (1, b"")
        assert await client.call(WRITE_ZEROES, 0, 512) == (1, b"")
        assert await client.call(READ, 0, 512) == (0, bytes(device.content[:512]))


async def test_no_more_than_so_many_requests_wait(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = MemoryBackend(device)
    count = MAX_WAITING + 50
    async with serving(backend, tmp_path) as served, served.client() as client:
        await client.stream.send_all(b"".join(client.pack(READ, 0, 512) for _ in range(count)))
        await backend.wait_asked(MAX_WAITING)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(backend.asked) == MAX_WAITING
        await backend.fetch(0, 4096)
        replies = [await client.reply() for _ in range(count)]
        assert {cookie for cookie, _, _ in replies} == set(range(count))
        assert {(error, data) for _, error, data in replies} == {(0, bytes(device.content[:512]))}


async def test_no_more_than_so_much_payload_waits(tmp_path: Path) -> None:
    device = MemoryDevice(32 * MIB)
    device.withhold(0, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        reads = b"".join(client.pack(READ, 0, 32 * MIB) for _ in range(3))
        await client.stream.send_all(reads)
        await backend.wait_asked(2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(backend.asked) == 2
        await backend.fetch(0, 4096)
        assert sorted([(await client.reply())[:2] for _ in range(3)]) == [(0, 0), (1, 0), (2, 0)]


async def test_slow_reader_stops_only_itself(tmp_path: Path) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served, served.client() as slow:
        await slow.stream.send_all(b"".join(slow.pack(READ, 0, MIB) for _ in range(32)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [operation for operation, _, _ in device.calls].count("read") < 32
        async with served.client() as other:
            assert await other.call(READ, 0, 512) == (0, bytes(device.content[:512]))
        for cookie in range(32):
            assert await slow.reply() == (cookie, 0, bytes(device.content))


async def test_client_that_vanishes_takes_its_waits_along(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = WatchedBackend(device)
    async with serving(backend, tmp_path) as served:
        async with served.client() as client:
            await client.send(READ, 0, 512)
            await backend.wait_asked(1)
        await backend.given_up.wait()
        async with served.client() as client:
            assert (await client.call(READ, 8192, 512))[0] == 0


@pytest.mark.parametrize("sent", [0, 1, 27, 28, 28 + 511])
async def test_half_a_request_then_gone(tmp_path: Path, sent: int) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served:
        async with served.client() as client:
            await client.stream.send_all(client.pack(WRITE, 0, payload=b"x" * 512)[:sent])
            assert isinstance(client.stream, trio.SocketStream)
            await client.stream.send_eof()
            assert await client.ended()
        assert device.calls == []


async def test_disconnect_finishes_what_is_in_flight(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = MemoryBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        requests = client.pack(READ, 0, 512) + client.pack(WRITE, 1024, payload=b"w" * 512)
        await client.stream.send_all(requests + client.pack(DISC))
        await backend.wait_asked(2)
        await backend.fetch(0, 4096)
        replies = {await client.reply(), await client.reply()}
        assert replies == {(0, 0, bytes(device.content[:512])), (1, 0, b"")}
        assert await client.ended()


async def test_disconnect_and_gone_still_writes_what_was_sent(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(0, 8192)
    backend = WatchedBackend(device)
    async with serving(backend, tmp_path) as served:
        async with served.client() as client:
            requests = client.pack(READ, 4096, 512) + client.pack(WRITE, 0, payload=b"w" * 512)
            await client.stream.send_all(requests + client.pack(DISC))
            await backend.wait_asked(2)
        await backend.given_up.wait()
        await backend.fetch(0, 4096)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert device.content[:512] == b"w" * 512
        assert device.calls == [("write", 0, 512)]


async def test_client_that_breaks_the_protocol_is_dropped_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = WatchedBackend(device)
    async with (
        serving(backend, tmp_path) as served,
        served.client() as good,
        served.client() as bad,
    ):
        await bad.send(READ, 0, 512)
        await backend.wait_asked(1)
        await bad.stream.send_all(bytes(28))
        assert await bad.ended()
        await backend.given_up.wait()
        assert "NBD client dropped: a request starts with 0x00000000" in caplog.text
        assert (await good.call(READ, 8192, 512))[0] == 0


async def test_cancellation_with_requests_in_flight(tmp_path: Path) -> None:
    device = some_device()
    device.withhold(0, 4096)
    backend = WatchedBackend(device)
    async with serving(backend, tmp_path) as served, served.client() as client:
        await client.send(READ, 0, 512)
        await backend.wait_asked(1)
        served.scope.cancel()
    assert backend.given_up.is_set()
    assert not served.path.exists()


async def test_one_connection_too_many_waits_for_its_turn(tmp_path: Path) -> None:
    async with serving(MemoryBackend(some_device()), tmp_path) as served:
        streams = [
            await trio.open_unix_socket(str(served.path)) for _ in range(MAX_CONNECTIONS + 1)
        ]
        for stream in streams[:-1]:
            assert await stream.receive_some(18)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(BlockingIOError):
            os.read(streams[-1].socket.fileno(), 1)
        await streams[0].aclose()
        assert await streams[-1].receive_some(18)
        for stream in streams:
            await stream.aclose()


async def test_handshake_has_a_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    autojump_clock.autojump_threshold = 0.01
    async with serving(MemoryBackend(some_device()), tmp_path) as served:
        async with await trio.open_unix_socket(str(served.path)) as stream:
            assert len(await stream.receive_some(18)) == 18
            assert await stream.receive_some() == b""
    assert "no handshake in 30 s" in caplog.text


async def test_connections_share_the_device(tmp_path: Path) -> None:
    device = some_device()
    async with serving(MemoryBackend(device), tmp_path) as served:
        async with served.client() as one, served.client() as two:
            assert await one.call(WRITE, 0, payload=b"1" * 512) == (0, b"")
            assert await two.call(READ, 0, 512) == (0, b"1" * 512)
            assert await two.call(FLUSH) == (0, b"")
            assert device.durable[:512] == b"1" * 512
