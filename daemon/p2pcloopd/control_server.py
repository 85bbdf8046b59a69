"""The control socket, served: a nursery per connection, a task per request, one writer."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from p2pcloop import __version__
from p2pcloop.errors import BusyError, DaemonError, P2pcloopError, storage_error
from p2pcloop.frozen import dataclass
from p2pcloop.protocol.control import (
    CONTROL_VERSION,
    MAX_IN_FLIGHT,
    Cancel,
    ControlReceiver,
    Event,
    Failure,
    LocalControlError,
    Message,
    RemoteControlError,
    Reply,
    Request,
    encode,
)
from p2pcloop.store.home import SOCKET_SUFFIX
from p2pcloop.words import tr
from p2pcloopd import accepting
from p2pcloopd.frame_sender import FrameSender
from p2pcloopd.unix_listener import bind_unix_listener

RECEIVE_SIZE = 1 << 16

MAX_HELD = 32 << 20
"""The most bytes of read data that wait to be sent on one connection (one read always may)."""

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerWords:
    """How errors speak of the process that serves a control socket.

    Attributes:
        name: of the process.
        log: where it says more.
        stop: how it is ended, as advice.
    """

    name: str
    log: str
    stop: str


P2PCLOOPD = ServerWords("p2pcloopd", "daemon.log", tr("stop p2pcloopd with `p2pcloop daemon stop`"))


class Call:
    """One request, as its operation sees it.

    Attributes:
        op: the operation's name.
        args: its arguments, their shape not yet checked.
        then: what to call once the reply is written, or None.
    """

    def __init__(self, request: Request, connection: _Connection) -> None:
        self.op = request.op
        self.args = request.args
        self.then: Callable[[], None] | None = None
        self.held = 0
        self._id = request.id
        self._connection = connection

    async def emit(self, event: str, **fields: object) -> None:
        """Tell the client something before the reply; waits while the client does not read."""
        await self._connection.send(Event(self._id, event, fields))

    async def hold(self, size: int) -> None:
        """Wait until `size` more bytes of reply data may be in memory; given back when sent."""
        await self._connection.room.claim(size)
        self.held += size


Handler = Callable[[Call], Awaitable[dict[str, Any]]]


@contextmanager
def open_listener(path: Path) -> Iterator[trio.SocketListener]:
    """Listen on `path`, mode 0600, for as long as the block lasts.

    The caller holds the home's lock, so what lies at `path` is left over from one who died. The
    socket is renamed to `path` once it listens: who sees it can connect.

    Raises:
        StorageError: the system refused.
    """
    new = path.with_name(path.name + SOCKET_SUFFIX)
    with bind_unix_listener(new) as listening:
        try:
            new.replace(path)
        except OSError as err:
            raise storage_error(tr("cannot serve {path}", path=path), err) from err
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def passed_listener(passed: socket.socket) -> Iterator[trio.SocketListener]:
    """Listen on the socket that a service manager made. Its name stays: it is the manager's."""
    passed.setblocking(False)
    with trio.socket.from_stdlib_socket(passed) as listening:
        yield trio.SocketListener(listening)


async def serve_control(
    listener: trio.SocketListener,
    handler: Handler,
    *,
    server: ServerWords = P2PCLOOPD,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve every client that connects, until cancelled.

    `handler` returns the result of an operation or raises the P2pcloopError that the client gets;
    other errors speak of `server`.
    A client that breaks the protocol or goes away is dropped, and what it asked for is cancelled.
    """

    async def serve(stream: trio.SocketStream) -> None:
        await _Connection(stream, handler, server).run()

    await accepting.serve(serve, [listener], task_status=task_status)


class Room:
    """A number of bytes that may be taken; those who wait are served in order."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._turn = trio.Lock()
        self._freed = trio.Event()

    async def claim(self, size: int) -> None:
        """Wait for room; a size larger than all there is gets in alone."""
        async with self._turn:
            while self._used and self._used + size > self._size:
                self._freed = trio.Event()
                await self._freed.wait()
            self._used += size

    def give_back(self, size: int) -> None:
        self._used -= size
        self._freed.set()


class _Connection:
    """One client.

    The reader always reads, so that a cancel and a hang-up are seen at once, except while it
    refuses a request too many to a client that does not take its answers. A request that is
    cancelled half-way through its answer leaves the stream whole (`FrameSender`).
    """

    def __init__(self, stream: trio.SocketStream, handler: Handler, server: ServerWords) -> None:
        self._server = server
        self._stream = stream
        self._handler = handler
        self._running: dict[int, trio.CancelScope] = {}
        self._frames = FrameSender(stream)
        self.room = Room(MAX_HELD)

    async def run(self) -> None:
        async with self._stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._write, nursery.cancel_scope)
            nursery.start_soon(self._read, nursery)

    async def send(self, message: Message) -> None:
        await self._frames.send(encode(message))

    async def _write(self, scope: trio.CancelScope) -> None:
        try:
            await self._frames.run()
        except trio.BrokenResourceError:
            scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        receiver = ControlReceiver()
        greeted = False
        try:
            while data := await self._stream.receive_some(RECEIVE_SIZE):
                for message in receiver.receive(data):
                    if greeted:
                        await self._take(message, nursery)
                    elif not await self._greet(message):
                        return
                    greeted = True
        except trio.BrokenResourceError:
            pass  # it hung up with our bytes unread: the same as the stream's end
        except RemoteControlError as err:
            _log.warning("dropped a client, process %d: %s", self._peer(), err)
        finally:
            nursery.cancel_scope.cancel()

    async def _greet(self, message: Message) -> bool:
        match message:
            case Request(id, "hello", {"version": int(version), "software": str()}):
                if version == CONTROL_VERSION:
                    await self.send(Reply(id, _hello()))
                    return True
                await self._stream.send_all(
                    encode(Failure(id, _other_version(version, self._server)))
                )
                return False
        raise RemoteControlError("the first message is no `hello`")

    async def _take(self, message: Message, nursery: trio.Nursery) -> None:
        match message:
            case Request(id) if id in self._running:
                raise RemoteControlError(tr("two requests of id {id}", id=id))
            case Request(id) if len(self._running) >= MAX_IN_FLIGHT:
                await self.send(
                    Failure(
                        id,
                        BusyError(
                            tr(
                                "{max_in_flight} requests are under way",
                                max_in_flight=MAX_IN_FLIGHT,
                            )
                        ),
                    )
                )
            case Request(id):
                scope = self._running[id] = trio.CancelScope()
                nursery.start_soon(self._answer, message, scope)
            case Cancel(id):
                if id in self._running:  # else its reply is on the way
                    self._running.pop(id).cancel()
            case _:
                raise RemoteControlError(tr("a client sent a {name}", name=type(message).__name__))

    async def _answer(self, request: Request, scope: trio.CancelScope) -> None:
        call = Call(request, self)
        try:
            with scope:
                await self._frames.send(await self._perform(request.id, call))
                self._forget(request.id, scope)  # the client may use its number again
                try:
                    await self._frames.flush()
                finally:  # the client may have read it and gone by then
                    if call.then is not None:
                        call.then()
        finally:
            self.room.give_back(call.held)
            self._forget(request.id, scope)

    def _forget(self, id: int, scope: trio.CancelScope) -> None:  # noqa: A002  the protocol's word
        if self._running.get(id) is scope:
            del self._running[id]

    async def _perform(self, id: int, call: Call) -> bytes:  # noqa: A002  the protocol's word
        try:
            return encode(Reply(id, await self._handler(call)))
        except LocalControlError as err:
            return encode(
                Failure(
                    id,
                    DaemonError(
                        tr("the answer to `{op}` is too large: {err}", op=call.op, err=err)
                    ),
                )
            )
        except P2pcloopError as err:
            return encode(Failure(id, err))
        except Exception as err:
            # A bug of ours. It ends this request, loudly on both sides, and not every guest's disk.
            _log.exception("`%s` failed", call.op)
            failure = DaemonError(
                tr(
                    "{server} failed at `{op}`: {name}: {err}",
                    server=self._server.name,
                    op=call.op,
                    name=type(err).__name__,
                    err=err,
                ),
                hint=tr("this is a bug; {log} has more", log=self._server.log),
            )
            return encode(Failure(id, failure))

    def _peer(self) -> int:
        credentials = self._stream.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size
        )
        pid: int = _PEER.unpack(credentials)[0]
        return pid


def _hello() -> dict[str, Any]:
    return {"version": CONTROL_VERSION, "software": __version__, "pid": os.getpid()}


def _other_version(version: int, server: ServerWords) -> DaemonError:
    return DaemonError(
        tr(
            "the client speaks version {version} of the control protocol, {server} of"
            " p2pcloop {version2} speaks {control_version}",
            version=version,
            server=server.name,
            version2=__version__,
            control_version=CONTROL_VERSION,
        ),
        hint=tr("{stop}, and start it with the new version", stop=server.stop),
    )
