"""What the cases of QEMU's vhost-user-test and libvhost-user ask of a back end, message by message.

Every request of the specification, known here or not, of right and wrong sizes, with descriptors
that belong to it, too many, too few or of wrong kinds, in every state of a connection: the server
answers, or it ends that connection alone. It serves the next front end as if nothing had been, its
NBD clients all the time, and keeps no descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from p2pcloop.protocol import virtio_blk
from p2pcloop.protocol.vhost_session import F_PROTOCOL_FEATURES, OFFERED
from p2pcloop.protocol.vhost_user import Code
from p2pcloop.protocol.virtio_blk import Kind, Status
from p2pcloop.protocol.virtqueue import F_EVENT_IDX, F_INDIRECT_DESC
from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd
from p2pcloopd.block.vhost_server import serve_vhost_user
from p2pcloopd.unix_listener import unix_listener
from tests.support.descriptors import open_descriptors
from tests.support.front_end import VERSION_1, FrontEnd
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.nbd_client import READ, NbdClient
from tests.support.waiting import BOUND

SIZE = 64 * 4096
CODES = [*Code, 0, 4, 6, 19, 20, 22, 25, 31, 35, 43, 77, 0xFFFF_FFFF]
"""All that are known here, some of the specification that are not, and some that are none."""

SIZES = {
    Code.SET_MEM_TABLE: 40,
    Code.SET_VRING_ADDR: 40,
    Code.GET_CONFIG: 12 + 60,
    **dict.fromkeys((8, 10, 11, 18), 8),
    **dict.fromkeys((2, 12, 13, 14, 16), 8),
}
"""Right lengths of payloads, where they are not 0."""

STATES = ["new", "memory", "running"]


class Guest:
    """Connects front ends to one server, beside which an NBD client goes on reading."""

    def __init__(self, path: Path, nbd: NbdClient, backend: MemoryBackend) -> None:
        self.path = path
        self.nbd = nbd
        self.backend = backend
        self.device = backend.device

    @asynccontextmanager
    async def front_end(self, state: str) -> AsyncIterator[FrontEnd]:
        with trio.socket.socket(socket.AF_UNIX) as client:
            await client.connect(os.fspath(self.path))
            front_end = FrontEnd(client)
            try:
                await prepare(front_end, state)
                yield front_end
            finally:
                front_end.close()

    async def check(self) -> None:
        """A front end is served as if nothing had been, and so are NBD clients."""
        async with self.front_end("running") as front_end:
            status, data = await front_end.request(Kind.IN, 1, wanted=512)
            assert (status, data) == (Status.OK, CONTENT[512:1024])
        assert await self.nbd.call(READ, 0, 512) == (0, CONTENT[:512])


CONTENT = bytes(n % 251 for n in range(SIZE))


async def prepare(front_end: FrontEnd, state: str) -> None:
    if state == "running":
        await front_end.connect()
        return
    if state == "new":
        return
    await front_end.send(Code.SET_OWNER)
    await front_end.send(Code.SET_PROTOCOL_FEATURES, struct.pack("<Q", OFFERED))
    features = struct.pack("<Q", VERSION_1 | F_PROTOCOL_FEATURES)
    assert await front_end.tell(Code.SET_FEATURES, features) == 0
    if state == "memory":
        assert await front_end.share_memory() == 0


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    backend = MemoryBackend(MemoryDevice(CONTENT))
    descriptors = open_descriptors()
    with trio.fail_after(BOUND):
        with unix_listener(tmp_path / "vhost") as listener:
            accepting = trio.socket.from_stdlib_socket(listener)
            address = f"unix:{tmp_path / 'nbd'}"
            async with open_nbd_listeners(address) as listeners, trio.open_nursery() as nursery:
                await nursery.start(serve_nbd, backend, listeners)
                nursery.start_soon(serve_vhost_user, backend, accepting)
                async with await trio.open_unix_socket(os.fspath(tmp_path / "nbd")) as stream:
                    nbd = NbdClient(stream)
                    await nbd.haggle()
                    yield Guest(tmp_path / "vhost", nbd, backend)
                nursery.cancel_scope.cancel()
    assert open_descriptors() <= descriptors


# --- descriptors of all kinds --------------------------------------------------------------------


def _eventfds(count: int) -> Callable[[], list[int]]:
    return lambda: [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]


def _path_only() -> list[int]:
    return [os.open("/", os.O_PATH)]


def _closed_pipe() -> list[int]:
    reader, writer = os.pipe()
    os.close(reader)
    return [writer]


def _file() -> list[int]:
    fd, path = tempfile.mkstemp()
    Path(path).unlink()
    return [fd]


DESCRIPTORS: dict[str, Callable[[], list[int]]] = {
    "none": list,
    "an eventfd": _eventfds(1),
    "two eventfds": _eventfds(2),
    "eight eventfds": _eventfds(8),
    "nine eventfds": _eventfds(9),
    "a path": _path_only,
    "a path among eventfds": lambda: [*_eventfds(1)(), *_path_only(), *_eventfds(1)()],
    "a closed pipe": _closed_pipe,
    "a file": _file,
    "a directory": lambda: [os.open("/", os.O_RDONLY)],
    "nothing": lambda: [os.open(os.devnull, os.O_RDWR)],
}


@contextmanager
def opened(kind: str) -> Iterator[list[int]]:
    fds = DESCRIPTORS[kind]()
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def payloads(code: int) -> Iterator[bytes]:
    """Of the right length: zeros, ones, a small number. Empty, too short, too long, the longest."""
    right = SIZES.get(Code(code), 0) if code in set(Code) else 8
    yield from (bytes(size) for size in sorted({0, max(0, right - 1), right, right + 1, 4096}))
    if right:
        yield b"\xff" * right
        yield b"\1\0\0\0".ljust(right, b"\0")


OFFERED_FEATURES = (
    virtio_blk.offered_features(MemoryDevice(CONTENT)) | F_INDIRECT_DESC | F_EVENT_IDX
) | F_PROTOCOL_FEATURES
FEATURES = struct.pack("<IIIQ", Code.GET_FEATURES, 1 | 4, 8, OFFERED_FEATURES)
"""The reply to GET_FEATURES."""


async def is_answered(front_end: FrontEnd) -> bool:
    """Whether the server still answers this connection; else it has ended it."""
    try:
        await front_end.send(Code.GET_FEATURES)
        received = b""
        while not received.endswith(FEATURES):  # whatever else it had to say comes before
            piece = await front_end.connection.recv(65536)
            if not piece:
                return False
            received += piece
    except OSError:
        return False
    return True


async def send(front_end: FrontEnd, kind: str, code: int, payload: bytes = b"") -> bool:
    """Send a message that wants to be acknowledged or does not; False if no process takes it."""
    with opened(kind) as fds:
        try:
            await front_end.send(code, payload, fds, flags=1 | 8 * (len(payload) % 2))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", DESCRIPTORS)
async def test_any_message_is_answered_or_ends_its_connection_alone(
    guest: Guest, state: str, kind: str
) -> None:
    for code in CODES:
        async with AsyncExitStack() as stack:
            front_end = await stack.enter_async_context(guest.front_end(state))
            for payload in payloads(code):
                # As long as it is answered, what follows meets what the one before has left.
                if not await send(front_end, kind, code, payload) or not await is_answered(
                    front_end
                ):
                    await stack.aclose()
                    front_end = await stack.enter_async_context(guest.front_end(state))
    await guest.check()


@pytest.mark.parametrize("kind", DESCRIPTORS)
async def test_any_message_while_a_queue_stops(guest: Guest, kind: str) -> None:
    """It waits for the requests that were taken; meanwhile the front end may say anything."""
    codes = (Code.GET_FEATURES, Code.SET_VRING_KICK, Code.SET_MEM_TABLE, Code.SET_OWNER, 99)
    guest.device.withhold(4096, 4096)
    for count, code in enumerate(codes, 1):
        async with guest.front_end("running") as front_end:
            front_end.offer(Kind.IN, 8, wanted=512)
            front_end.ring()
            await guest.backend.wait_asked(count)
            await front_end.send(Code.GET_VRING_BASE, bytes(8))
            await send(front_end, kind, code, bytes(8))
    await guest.backend.fetch(4096, 4096)
    await guest.check()


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 257), (256, 1), (0, 4000), (1 << 31, 8)])
async def test_configuration_that_is_not_there_has_no_length(
    guest: Guest, offset: int, size: int
) -> None:
    """How the specification has a back end refuse GET_CONFIG; the connection goes on."""
    async with guest.front_end("negotiated") as front_end:
        asked = struct.pack("<III", offset, size, 0) + bytes(size)
        assert await front_end.ask(Code.GET_CONFIG, asked) == b""
        asked = struct.pack("<III", 0, 256, 0) + bytes(256)
        assert len(await front_end.ask(Code.GET_CONFIG, asked)) == 12 + 256


async def test_a_second_front_end_is_refused_and_told(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    async with guest.front_end("running") as first:
        with trio.socket.socket(socket.AF_UNIX) as second:
            await second.connect(os.fspath(guest.path))
            assert await second.recv(1) == b""
        assert "a second front end was refused" in caplog.text
        status, _ = await first.request(Kind.IN, 1, wanted=512)
        assert status == Status.OK
    for _ in range(20):  # one that comes when the first has just hung up is no second one
        await guest.check()


async def test_a_connection_that_cannot_be_accepted_does_not_end_the_server(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = trio.SocketListener.accept
    errors = [errno.EMFILE, errno.ENOBUFS]

    async def fail(listener: trio.SocketListener) -> trio.SocketStream:
        stream = await accept(listener)
        if errors:
            await stream.aclose()
            raise OSError(errors.pop(), "not now")
        return stream

    monkeypatch.setattr(trio.SocketListener, "accept", fail)
    await guest.check()  # accepted by the call that waited already
    for _ in range(2):
        with trio.socket.socket(socket.AF_UNIX) as client:
            await client.connect(os.fspath(guest.path))
            assert await client.recv(1) == b""
    await guest.check()
