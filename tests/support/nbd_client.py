"""A minimal NBD client, written against the specification only, and a server for it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2pcloopd.block.backend import Backend
from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd

READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE = 1, 2


class NbdClient:
    """One connection in the transmission phase; cookies count from 0."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._cookies = 0
        self._reads: dict[int, int] = {}
        self._received = bytearray()

    async def haggle(self) -> None:
        """Take the greeting and choose the export with GO."""
        assert (await self.receive(18))[:16] == b"NBDMAGICIHAVEOPT"
        await self.stream.send_all(
            bytes.fromhex("00000003") + b"IHAVEOPT" + struct.pack(">II", 7, 6)
        )
        await self.stream.send_all(bytes(6))
        assert len(await self.receive(20 + 12 + 20)) == 52

    def pack(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
    ) -> bytes:
        """The bytes of a request; its cookie is the number of requests packed before it."""
        cookie = self._cookies
        self._cookies += 1
        if command == READ:
            self._reads[cookie] = length
        length = length or len(payload)
        return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload

    async def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
    ) -> None:
        await self.stream.send_all(self.pack(command, offset, length, flags=flags, payload=payload))

    async def reply(self) -> tuple[int, int, bytes]:
        """The next reply: cookie, error, data."""
        magic, error, cookie = struct.unpack(">IIQ", await self.receive(16))
        assert magic == 0x67446698
        length = self._reads.pop(cookie, 0)
        return cookie, error, await self.receive(0 if error else length)

    async def call(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
    ) -> tuple[int, bytes]:
        """Send one request and take its reply: error, data."""
        await self.send(command, offset, length, flags=flags, payload=payload)
        cookie, error, data = await self.reply()
        assert cookie == self._cookies - 1
        return error, data

    async def receive(self, length: int) -> bytes:
        while len(self._received) < length:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError
            self._received += data
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    async def ended(self) -> bool:
        """Wait for the server to close; whether nothing more came before."""
        try:
            return not self._received and not await self.stream.receive_some()
        except trio.BrokenResourceError:
            return True


class Served:
    """A running server on a Unix socket."""

    def __init__(self, path: Path, scope: trio.CancelScope) -> None:
        self.path = path
        self.scope = scope

    @asynccontextmanager
    async def client(self) -> AsyncIterator[NbdClient]:
        async with await trio.open_unix_socket(self.path) as stream:
            client = NbdClient(stream)
            await client.haggle()
            yield client


@asynccontextmanager
async def serving(backend: Backend, directory: Path) -> AsyncIterator[Served]:
    """Serve a backend on the socket `s` in `directory`, for a minute at most."""
    path = directory / "s"
    async with open_nbd_listeners(f"unix:{path}") as listeners, trio.open_nursery() as nursery:
        await nursery.start(serve_nbd, backend, listeners)
        with trio.fail_after(60):
            yield Served(path, nursery.cancel_scope)
        nursery.cancel_scope.cancel()
