"""The block server's side of the control socket: many calls in flight, over daemon restarts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from p2pcloop import __version__
from p2pcloop.errors import DaemonError, P2pcloopError
from p2pcloop.protocol.control import (
    CONTROL_VERSION,
    MAX_IN_FLIGHT,
    Cancel,
    ControlReceiver,
    Event,
    Failure,
    Message,
    RemoteControlError,
    Reply,
    Request,
    encode,
)
from p2pcloop.store.socket_path import socket_address
from p2pcloop.words import tr
from p2pcloopd.frame_sender import FrameSender

OnEvent = Callable[[str, dict[str, Any]], None]

RECEIVE_SIZE = 1 << 18
FIRST_DELAY = 0.05
LAST_DELAY = 1.0

GONE_SECONDS = 2.0
"""A call that waits so long for p2pcloopd to come back says so."""

BACK_SECONDS = 5.0

_log = logging.getLogger(__name__)


class ConnectionLostError(DaemonError):
    """The server cannot be reached or went away; a new connection may find it again."""


class _Call:
    __slots__ = ("answer", "done", "on_event")

    def __init__(self, on_event: OnEvent | None) -> None:
        self.on_event = on_event
        self.done = trio.Event()
        self.answer: dict[str, Any] | P2pcloopError | None = None

    def end(self, answer: dict[str, Any] | P2pcloopError) -> None:
        self.answer = answer
        self.done.set()


class ControlClient:
    """One connection to p2pcloopd, or to a guest.

    Run `run` in a nursery; it ends when the connection does.

    Attributes:
        lost: the connection has ended; every call fails.
    """

    def __init__(self, path: Path, server: str = "p2pcloopd") -> None:
        """`path` is of the server's socket, `server` how errors name it."""
        self._path = path
        self._server = server
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._slots = trio.Semaphore(MAX_IN_FLIGHT)
        self._frames: FrameSender
        self.lost = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, agree on the version, and serve the calls until p2pcloopd goes away.

        Raises:
            ConnectionLostError: before `task_status.started`: no p2pcloopd to talk to.
            DaemonError: before `task_status.started`: it speaks another version.
        """
        try:
            with socket_address(self._path) as address:
                stream = await trio.open_unix_socket(address)
        except OSError as err:
            raise ConnectionLostError(
                tr("cannot connect to {path}: {why}", path=self._path, why=err.strerror)
            ) from err
        try:
            async with stream:
                receiver = ControlReceiver()
                await self._greet(stream, receiver)
                self._frames = FrameSender(stream)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._receive, stream, receiver, nursery.cancel_scope)
                    task_status.started()
        finally:
            self._lose()

    async def call(
        self, op: str, on_event: OnEvent | None = None, **args: object
    ) -> dict[str, Any]:
        """Ask for an operation and wait for its result; any number may wait at once.

        `on_event` is called with the name and fields of each event; it must neither raise nor
        block. A cancelled call tells p2pcloopd, which then stops the operation.

        Raises:
            P2pcloopError: of the class that was raised in p2pcloopd.
            ConnectionLostError: p2pcloopd went away; whether it did it is not known.
        """
        async with self._slots:
            self._check()
            id = next(self._ids)  # noqa: A001  the protocol's word
            frame = encode(Request(id, op, args))
            call = self._calls[id] = _Call(on_event)
            # A cancelled call must say so without waiting. What may have to wait is a request and
            # a cancel for each of the MAX_IN_FLIGHT calls.
            self._frames.send_nowait(frame)
            try:
                await call.done.wait()
            finally:
                if self._calls.pop(id, None) is not None and not self.lost:
                    self._frames.send_nowait(encode(Cancel(id)))
        if isinstance(call.answer, P2pcloopError):
            raise call.answer
        assert call.answer is not None
        return call.answer

    async def _greet(self, stream: trio.SocketStream, receiver: ControlReceiver) -> None:
        hello = Request(0, "hello", {"version": CONTROL_VERSION, "software": __version__})
        try:
            await stream.send_all(encode(hello))
            messages: list[Message] = []
            while not messages:
                data = await stream.receive_some(RECEIVE_SIZE)
                if not data:
                    raise ConnectionLostError(
                        tr("{server} hung up at the greeting", server=self._server)
                    )
                messages = receiver.receive(data)
        except (trio.BrokenResourceError, RemoteControlError) as err:
            raise ConnectionLostError(
                tr("lost {server} at the greeting: {err}", server=self._server, err=err)
            ) from err
        match messages:
            case [Failure(0, error)]:
                raise error
            case [Reply(0, _)]:
                return
        raise ConnectionLostError(
            tr("{server} answered the greeting with something else", server=self._server)
        )

    async def _send(self) -> None:
        # What the server answered before it hung up lies here: `_receive` takes that, and ends.
        with suppress(trio.BrokenResourceError):
            await self._frames.run()

    async def _receive(
        self, stream: trio.SocketStream, receiver: ControlReceiver, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await stream.receive_some(RECEIVE_SIZE):
                for message in receiver.receive(data):
                    self._take(message)
        except trio.BrokenResourceError:
            pass  # hung up with our bytes unread: the same as the stream's end
        except RemoteControlError as err:
            _log.warning("%s broke the control protocol: %s", self._server, err)
        scope.cancel()

    def _take(self, message: Message) -> None:
        match message:
            case Reply(id, result) if id in self._calls:
                self._calls.pop(id).end(result)
            case Failure(id, error) if id in self._calls:
                self._calls.pop(id).end(error)
            case Event(id, event, fields) if id in self._calls:
                on_event = self._calls[id].on_event
                if on_event is not None:
                    on_event(event, fields)

    def _check(self) -> None:
        if self.lost:
            raise ConnectionLostError(tr("{server} went away", server=self._server))

    def _lose(self) -> None:
        self.lost = True
        for call in self._calls.values():
            call.end(ConnectionLostError(tr("{server} went away", server=self._server)))
        self._calls.clear()


async def _nothing(_client: ControlClient) -> None:
    pass


class ReconnectingClient:
    """A connection that outlives p2pcloopd: calls wait for it to come back and are asked again.

    Only for operations that may be done twice: `read`, `layout`, `add`, `resolve`, `status`.
    Run `run` in a nursery for as long as calls are made; it never ends by itself.
    """

    def __init__(
        self,
        path: Path,
        on_gone: Callable[[], None] = lambda: None,
        on_back: Callable[[ControlClient], Awaitable[None]] = _nothing,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is done before `run`.

        Args:
            path: of the control socket.
            on_gone: called once for each time that a call waits `GONE_SECONDS` for p2pcloopd.
            on_back: called with each connection but the first, before calls go on: the new
                p2pcloopd knows nothing of what was said before. Takes `BACK_SECONDS` at most.
            on_wait: called when a call begins to wait for a connection.
        """
        self._path = path
        self._on_gone = on_gone
        self._on_back = on_back
        self._on_wait = on_wait
        self._told_gone = False
        self._client: ControlClient | None = None
        self._connected = trio.Event()  # set, and replaced, at each new connection
        self._waited_for = trio.Event()  # set, and replaced, when a call begins to wait

    async def call(
        self, op: str, on_event: OnEvent | None = None, **args: object
    ) -> dict[str, Any]:
        """As `ControlClient.call`, but never raises `ConnectionLostError`."""
        while True:
            client = self._client
            if client is None or client.lost:
                await self._wait()
                continue
            try:
                return await client.call(op, on_event, **args)
            except ConnectionLostError:
                _log.info("waiting for p2pcloopd to come back for `%s`", op)

    async def _wait(self) -> None:
        """Return once there is a new connection."""
        connected = self._connected
        self._on_wait()
        self._waited_for.set()
        with trio.move_on_after(GONE_SECONDS):
            await connected.wait()
        if not connected.is_set():
            if not self._told_gone:
                self._told_gone = True
                self._on_gone()
            await connected.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep connected until cancelled; `started` at once, connected or not."""
        task_status.started()
        delay = FIRST_DELAY
        while True:
            self._waited_for = trio.Event()
            client = ControlClient(self._path)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(client.run)
                    delay = FIRST_DELAY
                    if self._client is not None:
                        with trio.move_on_after(BACK_SECONDS):
                            await self._on_back(client)
                    self._client = client
                    self._told_gone = False
                    self._connected.set()
                    self._connected = trio.Event()
            except* P2pcloopError as err:
                # One that cannot be talked to now (not there, starting, another version while it
                # is being upgraded) may be the next time; the guest waits rather than fails.
                _log.debug("p2pcloopd cannot be reached: %s", err.exceptions[0])
            # A socket that is to appear is no event that the kernel offers without inotify, which
            # Python has no binding for. A try costs one connect(2); at most one a second, and soon
            # after a call begins to wait, which may have p2pcloopd started.
            with trio.move_on_after(delay) as pause:
                await self._waited_for.wait()
            if not pause.cancelled_caught:
                await trio.sleep(FIRST_DELAY)
                delay = FIRST_DELAY
            delay = min(2 * delay, LAST_DELAY)
