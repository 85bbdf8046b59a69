"""A vhost-user-blk front end: a guest's machine that shares memory and talks to a back end."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import trio

from p2pcloop.protocol.vhost_session import F_PROTOCOL_FEATURES, OFFERED
from p2pcloop.protocol.vhost_user import Code
from p2pcloop.protocol.virtqueue import F_EVENT_IDX
from tests.support.vring import GUEST, USER, WRITE, Driver

VERSION_1 = 1 << 32
MEMORY = 1 << 20
MEMFD = "vhost-test-guest"


class FrontEnd:
    """A guest's machine: it shares memory and talks vhost-user and virtio-blk.

    Attributes:
        driver: the virtio driver of the one queue.
        memory: the file that is guest memory; it begins at an offset of 512 bytes.
    """

    OFFSET = 512

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self.connection = connection
        self.memory = os.memfd_create(MEMFD)
        os.ftruncate(self.memory, self.OFFSET + MEMORY)
        self._map = mmap.mmap(self.memory, self.OFFSET + MEMORY)
        self.driver = Driver(memoryview(self._map)[self.OFFSET :], size=16)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_NONBLOCK)
        self.statuses: dict[int, tuple[int, int, int]] = {}

    def close(self) -> None:
        self.connection.close()
        self.driver.memory.release()
        self._map.close()
        for fd in (self.memory, self.kick, self.call, self.err):
            os.close(fd)

    async def send(
        self, code: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1
    ) -> None:
        data = struct.pack("<III", code, flags, len(payload)) + payload
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        await self.connection.sendmsg([data], [rights] if fds else [])

    async def receive(self) -> tuple[int, bytes]:
        """Return code and payload of a reply."""
        code, flags, size = struct.unpack("<III", await self._exactly(12))
        assert flags == 1 | 4
        return code, await self._exactly(size)

    async def ask(self, code: int, payload: bytes = b"") -> bytes:
        await self.send(code, payload)
        answered, answer = await self.receive()
        assert answered == code
        return answer

    async def tell(self, code: int, payload: bytes = b"", *fds: int) -> int:
        """Send a message that wants to be acknowledged and return 0 if it was carried out."""
        await self.send(code, payload, fds, flags=1 | 8)
        answered, answer = await self.receive()
        assert answered == code
        return int(struct.unpack("<Q", answer)[0])

    async def connect(self, features: int = 0) -> None:
        """Negotiate, share memory and start the queue, in the order that UML does it."""
        offered = struct.unpack("<Q", await self.ask(Code.GET_FEATURES))[0]
        features |= F_PROTOCOL_FEATURES | VERSION_1
        assert offered & features == features
        await self.send(Code.SET_OWNER)
        await self.send(Code.SET_PROTOCOL_FEATURES, struct.pack("<Q", OFFERED))
        assert await self.tell(Code.SET_FEATURES, struct.pack("<Q", features)) == 0
        self.driver.event_idx = bool(features & F_EVENT_IDX)
        assert await self.share_memory() == 0
        await self.start_queue()

    async def share_memory(self, size: int = MEMORY) -> int:
        table = struct.pack("<IIQQQQ", 1, 0, GUEST, size, USER, self.OFFSET)
        return await self.tell(Code.SET_MEM_TABLE, table, self.memory)

    async def start_queue(self, base: int = 0) -> None:
        driver = self.driver
        assert await self.tell(Code.SET_VRING_CALL, struct.pack("<Q", 0), self.call) == 0
        assert await self.tell(Code.SET_VRING_ERR, struct.pack("<Q", 0), self.err) == 0
        assert await self.tell(Code.SET_VRING_NUM, struct.pack("<II", 0, driver.size)) == 0
        assert await self.tell(Code.SET_VRING_BASE, struct.pack("<II", 0, base)) == 0
        parts = (USER + driver.descriptors, USER + driver.used, USER + driver.available)
        addresses = struct.pack("<IIQQQQ", 0, 0, *parts, 0)
        assert await self.tell(Code.SET_VRING_ADDR, addresses) == 0
        assert await self.tell(Code.SET_VRING_KICK, struct.pack("<Q", 0), self.kick) == 0
        assert await self.enable(1) == 0

    async def enable(self, value: int) -> int:
        return await self.tell(Code.SET_VRING_ENABLE, struct.pack("<II", 0, value))

    async def get_base(self) -> int:
        return int(struct.unpack("<II", await self.ask(Code.GET_VRING_BASE, bytes(8)))[1])

    def offer(self, kind: int, sector: int = 0, data: bytes = b"", *, wanted: int = 0) -> int:
        """Make a request available, without a kick, and return its head."""
        driver = self.driver
        header = struct.pack("<IIQ", kind, 0, sector)
        buffers = [(driver.allocate(16, header), 16, 0)]
        if data:
            buffers.append((driver.allocate(len(data), data), len(data), 0))
        answer = driver.allocate(wanted, b"\xee" * wanted) if wanted else 0
        if wanted:
            buffers.append((answer, wanted, WRITE))
        status = driver.allocate(1, b"\xff")
        head = driver.offer([*buffers, (status, 1, WRITE)])
        self.statuses[head] = (answer, wanted, status)
        return head

    def ring(self) -> None:
        os.write(self.kick, (1).to_bytes(8, "little"))

    async def wait_done(self, count: int = 1) -> dict[int, tuple[int, bytes]]:
        """Wait for calls until `count` requests are done; return status and data of each."""
        done: dict[int, tuple[int, bytes]] = {}
        while len(done) < count:
            await trio.lowlevel.wait_readable(self.call)
            os.read(self.call, 8)
            for head, written in self.driver.collect():
                answer, wanted, status = self.statuses.pop(head)
                assert written == wanted + 1
                data = self.driver.bytes_at(answer, wanted) if wanted else b""
                done[head] = self.driver.bytes_at(status, 1)[0], data
        return done

    async def request(
        self, kind: int, sector: int = 0, data: bytes = b"", *, wanted: int = 0
    ) -> tuple[int, bytes]:
        """Make one request and return its status and data."""
        head = self.offer(kind, sector, data, wanted=wanted)
        self.ring()
        return (await self.wait_done())[head]

    async def wait_hung_up(self) -> None:
        with suppress(ConnectionResetError):  # where it left something unread
            assert await self.connection.recv(1) == b""

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await self.connection.recv(size - len(data))
            assert piece, "the server hung up"
            data += piece
        return data
