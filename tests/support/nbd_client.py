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
from tests.support.waiting import BOUND

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << bit for bit in range(5))
HOLE_AND_ZERO = 3

Chunk = tuple[str, int, object]
"""A chunk of a structured reply: ("data", offset, bytes), ("hole", offset, length), ("status",
context, [(length, flags), ...]) or ("error", error, message). A simple reply is ("done", error, 0).
"""


class NbdClient:
    """One connection in the transmission phase; cookies count from 0."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._cookies = 0
        self._reads: dict[int, int] = {}
        self._received = bytearray()

    async def haggle(self, *, structured: bool = False) -> None:
        """Take the greeting, agree on chunks and `base:allocation` or not, and choose the export.

        The context is then selected under the id 1, which is all that this client takes.
        """
        assert (await self.receive(18))[:16] == b"NBDMAGICIHAVEOPT"
        await self.stream.send_all(bytes.fromhex("00000003"))
        if structured:
            await self._option(8, b"")
            assert (await self.receive(20))[12:16] == bytes.fromhex("00000001")
            query = b"base:allocation"
            await self._option(10, struct.pack(">III", 0, 1, len(query)) + query)
            told = await self.receive(20 + 4 + len(query) + 20)
            assert told[20:-20] == bytes.fromhex("00000001") + query
        await self.choose()

    async def choose(self) -> None:
        """Choose the export with the empty name."""
        await self._option(7, bytes(6))
        assert len(await self.receive(20 + 12 + 20)) == 52

    async def _option(self, number: int, data: bytes) -> None:
        await self.stream.send_all(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

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

    async def chunks(self) -> tuple[int, list[Chunk]]:
        """The next whole reply where structured ones were agreed on: cookie, chunks in order."""
        chunks: list[Chunk] = []
        cookies = set()
        done = 0
        while not done:
            (magic,) = struct.unpack(">I", await self.receive(4))
            if magic == 0x67446698:
                error, cookie = struct.unpack(">IQ", await self.receive(12))
                assert not chunks
                return cookie, [("done", error, 0)]
            assert magic == 0x668E33EF
            done, kind, cookie, length = struct.unpack(">HHQI", await self.receive(16))
            cookies.add(cookie)
            chunks.append(_parse_chunk(kind, await self.receive(length)))
        (cookie,) = cookies  # those of other replies are not expected in between
        return cookie, chunks

    async def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0
    ) -> list[Chunk]:
        """Send one request without data where structured replies were agreed on; its chunks."""
        await self.send(command, offset, length, flags=flags)
        cookie, chunks = await self.chunks()
        assert cookie == self._cookies - 1
        return chunks

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


def _parse_chunk(kind: int, payload: bytes) -> Chunk:
    if kind == 1:
        return "data", int.from_bytes(payload[:8], "big"), payload[8:]
    if kind == 2:
        offset, length = struct.unpack(">QI", payload)
        return "hole", offset, length
    if kind == 5:
        extents = list(struct.iter_unpack(">II", payload[4:]))
        return "status", int.from_bytes(payload[:4], "big"), extents
    assert kind == 0x8001, kind
    error, length = struct.unpack_from(">IH", payload)
    assert len(payload) == 6 + length
    return "error", error, payload[6:].decode()


class Served:
    """A running server on a Unix socket."""

    def __init__(self, path: Path, scope: trio.CancelScope) -> None:
        self.path = path
        self.scope = scope

    @asynccontextmanager
    async def client(self, *, structured: bool = False) -> AsyncIterator[NbdClient]:
        async with await trio.open_unix_socket(self.path) as stream:
            client = NbdClient(stream)
            await client.haggle(structured=structured)
            yield client


@asynccontextmanager
async def serving(backend: Backend, directory: Path) -> AsyncIterator[Served]:
    """Serve a backend on the socket `s` in `directory`, for a minute at most."""
    path = directory / "s"
    async with open_nbd_listeners(f"unix:{path}") as listeners, trio.open_nursery() as nursery:
        await nursery.start(serve_nbd, backend, listeners)
        with trio.fail_after(BOUND):
            yield Served(path, nursery.cancel_scope)
        nursery.cancel_scope.cancel()
