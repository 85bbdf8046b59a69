"""NBD front end: serves a backend's device to NBD clients, any number of requests at a time.

This is the thin trio side of `p2pcloop.protocol.nbd`. One task per connection receives requests,
answers inline those whose bytes are here, and sends the answers to all requests that arrived
together in one call. Reads that need decoding are put off until the others are answered, so that
their chunks are decoded in parallel. Only a request that must wait (for missing bytes, for the
disk) gets a task of its own; replies are sent as they become ready.

Overload: at most `Limits.served` clients are served; of the next ones some wait for their turn, and
all others are hung up on (nbd_crowd.py). At most `MAX_WAITING` requests with `MAX_WAITING_PAYLOAD`
bytes wait in tasks of one connection, and its replies fill at most one send buffer; beyond that the
server reads no more from it. So a connection takes at most 64 MiB for waiting requests, 32 MiB for
an arriving WRITE, and 32 MiB for a departing READ (`Export.max_payload` may be less). Waiting
requests of all connections take `MAX_WAITING_OF_ALL`, besides one of each. With requests of up to
128 KiB that are answered at once, it takes half a MiB in all.

Ends: if a client vanishes or breaks the protocol, its waiting requests are dropped; none of them
was acknowledged. After an orderly DISC all requests in flight are finished first, reads only as
long as the client stays. Cancellation closes the connections at once.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import trio

from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.image.api import Missing
from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd import GREETING, Choice, NbdServer, Reply, Request, Signal
from p2pcloop.protocol.nbd_export import Export, Exports
from p2pcloopd import accepting
from p2pcloopd.block.backend import Backend, complete
from p2pcloopd.block.nbd_calls import block_status, call_for, must_be_durable, payload_of
from p2pcloopd.block.nbd_crowd import DEFAULT_LIMITS, Crowd, Limits
from p2pcloopd.block.nbd_read import SPARSE_READ, ReadReply
from p2pcloopd.block.nbd_sender import ReplySender
from p2pcloopd.block.nbd_transport import PlainTransport, TlsTransport, Transport
from p2pcloopd.block.nbd_waiting import Budget, Waiting

HANDSHAKE_SECONDS: Final = 30

MAX_INLINE_CHANGE: Final = 4 << 20
"""Bytes in which a longer TRIM, WRITE_ZEROES or CACHE is done, so that other tasks get their
turn."""

_KEEPALIVE: Final = {
    # Seconds until a silent client is asked whether it is there, and between questions; how many
    # stay without an answer; milliseconds that a reply may take to arrive.
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,
}
"""Options of TCP, tcp(7)."""

_NO_PAYLOAD: Final = memoryview(b"")

_log = logging.getLogger(__name__)


class Served(Protocol):
    """The exports of a server, and the devices behind them."""

    @property
    def exports(self) -> Exports:
        """What clients can ask for."""

    def attach(
        self, name: bytes, leave: Callable[[], None]
    ) -> AbstractAsyncContextManager[Backend]:
        """The device of a client, while it is connected.

        It is entered before the client is told that it gets the export.

        Args:
            name: the export, as `Exports.find` has allowed it just now.
            leave: ends the connection.

        Raises:
            P2pcloopError: the client does not get it; it is told why.
        """

    def leaves(self, name: bytes) -> None:
        """A client says that it leaves (DISC), and has all answers. Else it was lost."""


@dataclass(frozen=True, slots=True)
class _One:
    """A server of one device."""

    backend: Backend
    exports: Export

    @asynccontextmanager
    async def attach(self, name: bytes, leave: Callable[[], None]) -> AsyncIterator[Backend]:
        """See `Served.attach`."""
        del name, leave
        yield self.backend

    def leaves(self, name: bytes) -> None:
        """See `Served.leaves`: it makes no difference."""


async def serve_nbd(
    backend: Backend,
    listeners: list[trio.SocketListener],
    *,
    names: Sequence[str] = (),
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `backend` on `listeners` until cancelled; closes them at the end.

    Args:
        backend: what is served.
        listeners: where clients connect.
        names: names of the export, besides the empty one.
        tls: how every client must start TLS first, or None.
        task_status: see below.

    `task_status.started` gets the listeners once clients can connect.
    """
    device = backend.device
    export = Export(device.size, device.read_only, ("", *names), tls=tls is not None)
    await serve_exports(_One(backend, export), listeners, tls=tls, task_status=task_status)


async def serve_exports(
    served: Served,
    listeners: list[trio.SocketListener],
    *,
    tls: ssl.SSLContext | None = None,
    limits: Limits = DEFAULT_LIMITS,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve several devices, as `serve_nbd` does one.

    Args:
        served: the devices.
        listeners, tls, task_status: as for `serve_nbd`.
        limits: how many clients are served, and which.
    """
    places = trio.Semaphore(limits.served)
    crowd, budget = Crowd(limits), Budget()

    async def handle(stream: trio.SocketStream) -> None:
        address = peer_address(stream.socket)
        if (refusal := crowd.refusal(address)) is not None:
            _log.warning("NBD: a client is hung up on: %s", refusal)
            return
        with crowd.counted(address) as negotiated:
            if not places.value:
                _log.warning("NBD: %d clients are served: the next one waits", limits.served)
            async with places:
                await serve_client(stream, negotiated)

    async def serve_client(stream: trio.SocketStream, negotiated: Callable[[], None]) -> None:
        # SocketStream has set TCP_NODELAY; its own send and receive cost a reschedule each.
        with socket.socket(fileno=stream.socket.detach()) as sock:
            sock.setblocking(False)
            _notice_lost_client(sock)
            await _Connection(served, sock, tls, Waiting(budget), negotiated).run()

    await accepting.serve(handle, listeners, task_status=task_status)


def peer_address(sock: trio.socket.SocketType) -> str:
    """A client's address; empty where it has none, or has gone already."""
    try:
        peer = sock.getpeername()
    except OSError:
        return ""
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _notice_lost_client(sock: socket.socket) -> None:
    """End the connection of a client whose machine has lost its power or its network."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class _Connection:
    _backend: Backend
    _attached: AsyncExitStack

    def __init__(
        self,
        served: Served,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        waiting: Waiting,
        negotiated: Callable[[], None],
    ) -> None:
        self._served = served
        self._sock = sock
        self._tls = tls
        self._transport: Transport = PlainTransport(sock)
        self._protocol = NbdServer(served.exports, choices=True)
        self._session = trio.CancelScope()
        self._sender = ReplySender(self._transport, lost=self._session.cancel)
        self._tasks: trio.Nursery
        self._waiting = waiting
        self._negotiated = negotiated
        self._waiting_reads: set[trio.CancelScope] = set()
        self._put_off: list[Request] = []

    async def run(self) -> None:
        """Serve the client until it leaves; its errors end here, with a line in the log."""
        async with AsyncExitStack() as self._attached, trio.open_nursery() as self._tasks:
            orderly = False
            try:
                with self._session:
                    orderly = await self._serve()
            except wire.RemoteProtocolError as err:
                _log.warning("NBD client dropped: %s", err)
            if orderly:
                await self._finish()
                self._served.leaves(self._protocol.chosen)
            else:
                self._tasks.cancel_scope.cancel()

    async def _serve(self) -> bool:
        """Return whether the client said that it leaves (DISC); else it vanished."""
        await self._sender.send(GREETING)
        with trio.move_on_after(HANDSHAKE_SECONDS) as handshake:
            if not await self._negotiate():
                return False
        if handshake.cancelled_caught:
            _log.warning("NBD client dropped: no handshake in %d s", HANDSHAKE_SECONDS)
            return False
        self._negotiated()
        self._device = self._backend.device
        return await self._transmit()

    async def _negotiate(self) -> bool:
        while True:
            event = self._protocol.next_event()
            if event is Signal.NEED_DATA:
                if not await self._receive():
                    return False
            elif isinstance(event, Reply):
                await self._sender.send(event.data)
            elif isinstance(event, Choice):
                await self._attach(event.name)
            elif event is Signal.START_TLS:
                assert self._tls is not None, "the protocol starts TLS only where it is wanted"
                self._transport = await TlsTransport.accept(self._sock, self._tls)
                self._sender.transport = self._transport
            else:
                return event is Signal.NEGOTIATED

    async def _attach(self, name: bytes) -> None:
        """Get the device of an export, or refuse it."""
        await self._attached.aclose()
        device = self._served.attach(name, self._session.cancel)
        try:
            self._backend = await self._attached.enter_async_context(device)
        except P2pcloopError as err:
            self._protocol.refuse(str(err))

    async def _transmit(self) -> bool:
        next_event = self._protocol.next_event
        while True:
            event = next_event()
            if isinstance(event, Request):
                if event.command == wire.CMD_READ:
                    await self._read(event)
                else:
                    await self._do(event)
            elif event is Signal.NEED_DATA:
                await self._answer_batch()
                if not await self._receive():
                    return False
            elif isinstance(event, Reply):
                await self._sender.add(event.data)
            else:
                await self._answer_batch()
                return True

    async def _answer_batch(self) -> None:
        """Send the answers, then answer the reads that were put off, and send those."""
        await self._sender.send_batch()
        reads, self._put_off = self._put_off, []
        if not reads:
            return
        if len(reads) > 1:
            self._device.read_ahead([(read.offset, read.length) for read in reads])
        for read in reads:
            await self._read_now(read)
        await self._sender.send_batch()

    async def _finish(self) -> None:
        """After DISC, wait until all requests are answered, reads only while the client stays."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forget_reads_when_gone)
            await self._waiting.nothing()
            nursery.cancel_scope.cancel()

    async def _forget_reads_when_gone(self) -> None:
        await self._transport.wait_gone()
        self._sender.stop()
        for scope in self._waiting_reads:
            scope.cancel()

    async def _read(self, request: Request) -> None:
        """Answer a short read of decoded bytes; put off any other."""
        replies, length = self._protocol.replies, request.length
        if length >= SPARSE_READ:
            self._put_off.append(request)
            return
        header = replies.data_header_size
        reply = await self._sender.reserve(header + length)
        if self._device.copy_decoded(request.offset, reply[header:]):
            reply[:header] = replies.data_header(request.cookie, request.offset, length)
            self._sender.commit(len(reply))
        else:
            self._put_off.append(request)

    async def _read_now(self, request: Request) -> None:
        reply = ReadReply(self._device, self._protocol.replies, request)
        try:
            reply.fill(await self._sender.reserve(reply.size))
        except Missing as missing:
            await self._read_later(request, reply, missing)
        except P2pcloopError as err:
            await self._sender.add(self._failed(request, err))
        else:
            self._sender.commit(reply.size)

    async def _read_later(self, request: Request, reply: ReadReply, missing: Missing) -> None:
        await self._wait_for_room(request.length)
        memory = memoryview(bytearray(reply.size))
        call = partial(reply.fill, memory)
        self._start(request, partial(complete, self._backend, call, missing), memory)

    async def _do(self, request: Request) -> None:
        """Carry out a command other than READ."""
        if request.command == wire.CMD_BLOCK_STATUS:
            await self._sender.add(block_status(self._device, self._protocol.replies, request))
            return
        if request.command == wire.CMD_FLUSH:
            await self._wait_for_room(0)
            self._start(request)
            return
        if request.length > MAX_INLINE_CHANGE and request.command != wire.CMD_WRITE:
            await self._wait_for_room(0)
            self._start(request, partial(self._do_in_pieces, request))
            return
        try:
            call_for(self._device, request)()
        except Missing as missing:
            await self._wait_for_room(len(request.payload))
            kept = request._replace(payload=memoryview(bytes(request.payload)))
            again = call_for(self._device, kept)
            self._start(kept, partial(complete, self._backend, again, missing))
        except P2pcloopError as err:
            await self._sender.add(self._failed(request, err))
        else:
            if must_be_durable(request):
                await self._wait_for_room(0)
                self._start(request._replace(payload=_NO_PAYLOAD))
            else:
                await self._sender.add(self._protocol.replies.done(request.cookie))

    async def _do_in_pieces(self, request: Request) -> None:
        position, end = request.offset, request.offset + request.length
        while position < end:
            stop = min(end, (position // MAX_INLINE_CHANGE + 1) * MAX_INLINE_CHANGE)
            call = call_for(self._device, request._replace(offset=position, length=stop - position))
            try:
                call()
            except Missing as missing:
                await complete(self._backend, call, missing)
            else:
                await trio.lowlevel.checkpoint()
            position = stop

    def _start(
        self,
        request: Request,
        work: Callable[[], Awaitable[None]] | None = None,
        reply: memoryview | None = None,
    ) -> None:
        """Start a task for a request that must wait: for `work`, or until its writes are durable.

        `reply` is sent if all goes well; None stands for the bare header.
        """
        self._waiting.add(payload_of(request))
        good = self._protocol.replies.done(request.cookie) if reply is None else reply
        self._tasks.start_soon(self._answer_later, request, work, good)

    async def _answer_later(
        self,
        request: Request,
        work: Callable[[], Awaitable[None]] | None,
        reply: bytes | memoryview,
    ) -> None:
        scope = trio.CancelScope()
        if request.command == wire.CMD_READ:
            self._waiting_reads.add(scope)
        try:
            with scope:
                try:
                    if work is not None:
                        await work()
                    if must_be_durable(request):
                        await self._backend.flush()
                except P2pcloopError as err:
                    reply = self._failed(request, err)
                await self._sender.send(reply)
        finally:
            self._waiting_reads.discard(scope)
            self._waiting.remove(payload_of(request))

    def _failed(self, request: Request, err: P2pcloopError) -> bytes:
        """Return the reply to a request that failed."""
        error = wire.error_of_errno(err.errno) if isinstance(err, StorageError) else wire.EIO
        if error == wire.EIO:
            _log.error("I/O error told to an NBD client: %s", err)
        return self._protocol.replies.error(request.cookie, error, str(err))

    async def _wait_for_room(self, payload: int) -> None:
        if not self._waiting.has_room(payload):
            await self._sender.send_batch()
            await self._waiting.room(payload)

    async def _receive(self) -> bool:
        """Receive the next bytes; return False when the client is gone."""
        count = await self._transport.receive_into(self._protocol.receive_buffer())
        if count:
            self._protocol.received(count)
        return count > 0
