"""The vhost-user-blk server against a front end of ours: real sockets, memory and eventfds."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.protocol.vhost_user import Code
from p2pcloop.protocol.virtio_blk import Kind, Status
from p2pcloop.protocol.virtqueue import F_EVENT_IDX, F_INDIRECT_DESC
from p2pcloopd.block.vhost_server import serve_front_end, serve_vhost_user
from p2pcloopd.unix_listener import unix_listener
from tests.support.descriptors import open_descriptors
from tests.support.front_end import MEMFD, MEMORY, FrontEnd
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.vring import WRITE
from tests.support.waiting import BOUND

SIZE = 64 * 4096


@asynccontextmanager
async def serving(backend: MemoryBackend) -> AsyncIterator[FrontEnd]:
    """A front end with a server at its other end, which must end when the front end goes."""
    ours, theirs = trio.socket.socketpair()
    descriptors = open_descriptors()
    front_end = FrontEnd(ours)
    try:
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_front_end, backend, theirs)
                yield front_end
                ours.shutdown(socket.SHUT_WR)
    finally:
        front_end.close()
    assert open_descriptors() < descriptors
    assert not _is_guest_memory_mapped()


def _is_guest_memory_mapped() -> bool:
    return MEMFD in Path("/proc/self/maps").read_text()


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(bytes(n % 251 for n in range(SIZE)), serial=b"serial-of-it")


@pytest.fixture
def backend(device: MemoryDevice) -> MemoryBackend:
    return MemoryBackend(device)


@pytest.mark.parametrize("features", [0, F_EVENT_IDX, F_INDIRECT_DESC | F_EVENT_IDX])
async def test_every_kind_of_request(backend: MemoryBackend, features: int) -> None:
    device = backend.device
    async with serving(backend) as guest:
        await guest.connect(features)
        assert await guest.request(Kind.IN, 3, wanted=1024) == (0, bytes(device.content[1536:2560]))
        assert await guest.request(Kind.OUT, 8, b"w" * 4096) == (0, b"")
        assert await guest.request(Kind.IN, 8, wanted=4096) == (0, b"w" * 4096)
        assert device.durable[4096:8192] != b"w" * 4096
        assert await guest.request(Kind.FLUSH) == (0, b"")
        assert device.durable[4096:8192] == b"w" * 4096
        assert await guest.request(Kind.GET_ID, wanted=20) == (0, b"serial-of-it".ljust(20, b"\0"))
        ranges = struct.pack("<QII", 8, 8, 1)
        assert await guest.request(Kind.WRITE_ZEROES, 0, ranges) == (0, b"")
        assert device.calls[-1] == ("write_zeroes_unmap", 4096, 4096)
        ranges = struct.pack("<QII", 16, 8, 0)
        assert await guest.request(Kind.DISCARD, 0, ranges) == (0, b"")
        assert device.calls[-1] == ("discard", 8192, 4096)


async def test_configuration(backend: MemoryBackend) -> None:
    async with serving(backend) as guest:
        asked = struct.pack("<III", 0, 60, 0)
        answer = await guest.ask(Code.GET_CONFIG, asked + bytes(60))
        assert struct.unpack_from("<Q", answer, 12) == (SIZE // 512,)


async def test_a_batch_is_one_call(backend: MemoryBackend) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        heads = [guest.offer(Kind.IN, n, wanted=512) for n in range(5)]
        guest.ring()
        await trio.lowlevel.wait_readable(guest.call)
        assert int.from_bytes(os.read(guest.call, 8), "little") == 1
        assert [head for head, _ in guest.driver.collect()] == heads


async def test_calls_are_suppressed(backend: MemoryBackend) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        guest.driver.want_calls(wanted=False)
        guest.offer(Kind.IN, 0, wanted=512)
        guest.ring()
        assert await guest.get_base() == 1  # it is done once the queue has stopped
        assert len(guest.driver.collect()) == 1
        with pytest.raises(BlockingIOError):
            os.read(guest.call, 8)


async def test_more_than_a_batch_of_data(backend: MemoryBackend) -> None:
    """16 requests of 192 KiB are several batches; all of them come back."""
    async with serving(backend) as guest:
        await guest.connect(F_INDIRECT_DESC)
        driver = guest.driver
        room = driver.allocate(192 << 10)
        for _ in range(16):
            header = driver.allocate(16, struct.pack("<IIQ", Kind.IN, 0, 0))
            status = driver.allocate(1, b"\xff")
            buffers = [(header, 16, 0), (room, 192 << 10, WRITE), (status, 1, WRITE)]
            guest.statuses[driver.offer([driver.table(buffers)])] = (room, 192 << 10, status)
        guest.ring()
        done = await guest.wait_done(16)
        assert set(done.values()) == {(0, bytes(backend.device.content[: 192 << 10]))}


async def test_a_read_that_waits_is_overtaken(backend: MemoryBackend) -> None:
    device = backend.device
    device.withhold(4096, 4096)
    async with serving(backend) as guest:
        await guest.connect()
        slow = guest.offer(Kind.IN, 8, wanted=4096)
        quick = guest.offer(Kind.IN, 0, wanted=4096)
        guest.ring()
        assert await guest.wait_done() == {quick: (0, bytes(device.content[:4096]))}
        await backend.wait_asked(1)
        await backend.fetch(4096, 4096)
        assert await guest.wait_done() == {slow: (0, bytes(device.content[4096:8192]))}


async def test_a_partial_write_waits_for_the_rest(backend: MemoryBackend) -> None:
    backend.device.withhold(0, 4096)
    backend.automatic = True
    before = bytes(backend.device.content)
    async with serving(backend) as guest:
        await guest.connect()
        assert await guest.request(Kind.OUT, 1, b"x" * 512) == (0, b"")
        assert backend.device.content == before[:512] + b"x" * 512 + before[1024:]


async def test_errors_reach_the_guest(
    backend: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    failures = backend.device.failures
    failures["read"] = P2pcloopError("bad chunk")
    failures["write"] = StorageError("disk full", errno=28)
    failures["flush"] = StorageError("disk gone", errno=5)
    async with serving(backend) as guest:
        await guest.connect()
        for _ in range(3):
            assert (await guest.request(Kind.IN, wanted=512))[0] == Status.IOERR
        assert await guest.request(Kind.OUT, 0, bytes(512)) == (Status.IOERR, b"")
        assert await guest.request(Kind.FLUSH) == (Status.IOERR, b"")
        assert (await guest.request(Kind.IN, SIZE // 512, wanted=512))[0] == Status.IOERR
        assert await guest.request(99) == (Status.UNSUPP, b"")
        failures.clear()
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
    assert caplog.text.count("bad chunk") == 1
    assert "disk full (errno 28)" in caplog.text


async def test_bytes_that_can_never_be_had(backend: MemoryBackend) -> None:
    backend.device.withhold(0, 4096)
    async with serving(backend) as guest:
        await guest.connect()
        guest.offer(Kind.IN, wanted=512)
        guest.ring()
        await backend.wait_asked(1)
        await backend.fail(P2pcloopError("the publisher's data is wrong"))
        ((status, _),) = (await guest.wait_done()).values()
        assert status == Status.IOERR


async def test_front_end_goes_while_a_read_waits(backend: MemoryBackend) -> None:
    backend.device.withhold(0, SIZE)
    async with serving(backend) as guest:
        await guest.connect()
        guest.offer(Kind.IN, wanted=512)
        guest.offer(Kind.OUT, 1, b"x" * 512)
        guest.ring()
        await backend.wait_asked(2)


@pytest.mark.parametrize("said_ahead", [[], [Code.GET_VRING_BASE]], ids=["one", "two"])
async def test_front_end_goes_while_a_queue_stops(
    backend: MemoryBackend, said_ahead: list[Code]
) -> None:
    """QEMU disables a queue and asks for its base without waiting in between."""
    backend.device.withhold(0, SIZE)
    async with serving(backend) as guest:
        await guest.connect()
        guest.offer(Kind.IN, wanted=512)
        guest.ring()
        await backend.wait_asked(1)
        for code in said_ahead:
            await guest.send(code, bytes(8))
        await guest.send(Code.GET_VRING_BASE, bytes(8))


async def test_a_queue_that_stops_ends_what_it_took(backend: MemoryBackend) -> None:
    backend.device.withhold(0, 4096)
    async with serving(backend) as guest:
        await guest.connect()
        first = guest.offer(Kind.IN, wanted=512)
        guest.ring()
        await backend.wait_asked(1)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def stop() -> None:
                assert await guest.get_base() == 1
                assert [head for head, _ in guest.driver.collect()] == [first]

            await trio.testing.wait_all_tasks_blocked()
            await backend.fetch(0, 4096)
        second = guest.offer(Kind.IN, wanted=512)  # while it is stopped
        os.read(guest.call, 8)
        await guest.start_queue(base=1)
        assert await guest.wait_done() == {second: (0, bytes(backend.device.content[:512]))}


async def test_memory_is_replaced_under_a_running_queue(backend: MemoryBackend) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
        assert await guest.share_memory() == 0
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
        assert await guest.share_memory(MEMORY + 4096) == 1  # longer than its file
        assert await guest.share_memory() == 0
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK


async def test_a_broken_ring_stops_the_queue_only(
    backend: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        head = guest.offer(Kind.IN, wanted=512)
        guest.driver.make_available(guest.driver.size)
        guest.ring()
        await trio.lowlevel.wait_readable(guest.err)
        assert guest.driver.collect() == [(head, 513)]
        assert await guest.get_base() == 1
        struct.pack_into("<H", guest.driver.memory, guest.driver.available + 2, 1)
        os.read(guest.call, 8)
        await guest.start_queue(base=1)
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
    assert "queue stopped" in caplog.text


async def test_a_guest_that_has_ended_is_no_fault(
    backend: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    gone, call = os.pipe()
    os.close(gone)
    async with serving(backend) as guest:
        await guest.connect()
        assert await guest.tell(Code.SET_VRING_CALL, struct.pack("<Q", 0), call) == 0
        guest.offer(Kind.IN, wanted=512)
        guest.ring()
        await trio.lowlevel.wait_readable(guest.err)
    os.close(call)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_flushes_at_the_same_time_share_one(backend: MemoryBackend) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        assert (await guest.request(Kind.OUT, 0, b"w" * 512))[0] == Status.OK
        for _ in range(8):
            guest.offer(Kind.FLUSH)
        guest.ring()
        done = await guest.wait_done(8)
    assert list(done.values()) == [(Status.OK, b"")] * 8
    assert backend.device.durable == backend.device.content
    # A client that came after one had begun waits for the next: two at the most, in any order.
    assert 1 <= backend.device.calls.count(("flush", 0, 0)) <= 2


async def test_a_queue_without_a_place_is_refused(backend: MemoryBackend) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        kick = struct.pack("<Q", 1)
        assert await guest.tell(Code.SET_VRING_KICK, kick, guest.kick) == 0
        assert await guest.tell(Code.SET_VRING_ENABLE, struct.pack("<II", 1, 1)) == 1
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK


@pytest.mark.parametrize("kick_kind", ["closed pipe", "regular file"])
async def test_a_kick_that_is_none(backend: MemoryBackend, kick_kind: str, tmp_path: Path) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        if kick_kind == "closed pipe":
            fd, other = os.pipe()
            os.close(other)
        else:
            fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
        await guest.tell(Code.SET_VRING_KICK, struct.pack("<Q", 0), fd)
        os.close(fd)
        await trio.lowlevel.wait_readable(guest.err)


async def test_nonsense_ends_the_connection(
    backend: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(backend) as guest:
        await guest.connect()
        await guest.connection.send(b"GET / HTTP/1.1\r\n")
        await guest.wait_hung_up()
    assert "connection closed" in caplog.text


async def test_one_front_end_after_the_other(
    backend: MemoryBackend, tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "s"
    with unix_listener(path) as listener:
        accepting, came = trio.socket.from_stdlib_socket(listener), list[bool]()
        nursery.start_soon(serve_vhost_user, backend, accepting, came.append)
        for _ in range(2):
            with trio.socket.socket(socket.AF_UNIX) as client:
                await client.connect(os.fspath(path))
                guest = FrontEnd(client)
                try:
                    await guest.connect()
                    assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
                finally:
                    guest.close()
        assert came[:3] == [True, False, True]
        nursery.cancel_scope.cancel()
