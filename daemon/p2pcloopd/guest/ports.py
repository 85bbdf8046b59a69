"""Byte streams into a guest: the ports of a virtio console, served over vhost-user in this process.

Unlike a serial line or a terminal, a port carries every byte unchanged, makes the writer wait while
the reader is slow, and tells each side when the other one closes. It needs no network, and only a
kernel module, which our initramfs inserts. A guest can have any number of ports.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from p2pcloop.protocol import virtio_console as vc
from p2pcloop.protocol.vhost_state import Vring
from p2pcloop.protocol.virtio_console import Control, Event
from p2pcloop.protocol.virtqueue import Chain, Virtqueue, VirtqueueError

_ONE = (1).to_bytes(8, "little")
_ROOM = 1 << 16
"""Bytes for the guest that are kept here until it has room."""

_CONTROL_QUEUES = (vc.CONTROL_TO_GUEST, vc.CONTROL_FROM_GUEST)

_log = logging.getLogger(__name__)


class Port:
    """One port, our side.

    Attributes:
        name: as the guest finds it.
        opened: set once the guest has opened it.
        closed: set once the guest has closed it.
    """

    def __init__(
        self, name: str, receive: Callable[[bytes], Awaitable[None]] | None = None
    ) -> None:
        """Make a port that no device offers yet.

        Args:
            name: a file name.
            receive: called with what the guest writes; the guest waits while it is awaited.
        """
        self.name = name
        self.opened = trio.Event()
        self.closed = trio.Event()
        self._receive = receive
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._changed = trio.Event()

    async def send(self, data: bytes) -> None:
        """Write `data` for the guest; waits while it has no room."""
        self.put(data)
        while self._size >= _ROOM:
            await self._changed.wait()

    def put(self, data: bytes) -> None:
        """Write `data` for the guest, however much waits already."""
        if data and not self.closed.is_set():
            self._pieces.append(data)
            self._size += len(data)
            self._report()

    def end(self) -> None:
        """End the stream: a reader in the guest sees the end behind what was sent."""
        self._ended = True
        self._report()

    def record_closed(self) -> None:
        """Record that the guest closed the port, and drop what waits for it."""
        self.closed.set()
        self._pieces.clear()
        self._size = 0
        self._report()

    async def take(self, limit: int) -> bytes:
        """Return what is to be written next, at most one `put`; empty at the end."""
        await self.opened.wait()  # Linux's driver throws away what is sent before
        while not self._pieces:
            if self._ended:
                return b""
            await self._changed.wait()
        piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft(piece[limit:])
        self._size -= len(piece[:limit])
        self._report()
        return piece[:limit]

    async def deliver(self, data: bytes) -> None:
        """Hand on what the guest wrote."""
        if self._receive is not None:
            await self._receive(data)

    def _report(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class PortsDevice:
    """The device: what `serve_front_end` serves."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self.ports = ports
        self.features = vc.F_VERSION_1 | vc.F_MULTIPORT
        self.config = vc.config_space(len(ports))
        self.queues = vc.queue_count(len(ports))
        self._control = Port("")
        self._control.opened.set()
        self._servers: dict[int, _QueueServer] = {}

    def serve_queue(self, index: int, queue: Virtqueue, vring: Vring) -> _QueueServer:
        """What serves one queue."""
        self._servers[index] = server = self._server(index, queue, vring)
        return server

    def _server(self, index: int, queue: Virtqueue, vring: Vring) -> _QueueServer:
        if index == vc.CONTROL_TO_GUEST:
            return _ToGuest(queue, vring, self._control, lambda: None)
        if index == vc.CONTROL_FROM_GUEST:
            return _FromGuest(queue, vring, self._obey)
        number, to_guest = vc.port_of(index)
        port = self.ports[number]
        if to_guest:
            return _ToGuest(queue, vring, port, lambda: self.hang_up(port))
        return _FromGuest(queue, vring, port.deliver)

    def hang_up(self, port: Port) -> None:
        """Tell the guest that our side of a port is closed: its reads end, its writes fail."""
        self._report(Control(self.ports.index(port), Event.PORT_OPEN, 0))

    def remove(self, port: Port) -> None:
        """Remove a port: writes to it in the guest fail."""
        if not port.closed.is_set():
            self._report(Control(self.ports.index(port), Event.PORT_REMOVE))
            port.record_closed()

    async def drain(self, port: Port) -> None:
        """Return when the guest has closed a port, and all that it wrote there was delivered."""
        await port.closed.wait()
        number = self.ports.index(port)
        for index, server in self._servers.items():
            if index not in _CONTROL_QUEUES and vc.port_of(index) == (number, False):
                await server.catch_up()

    async def _obey(self, data: bytes) -> None:
        message = vc.parse_control(data)
        if message.event == Event.DEVICE_READY and message.value:
            for number in range(len(self.ports)):
                self._report(Control(number, Event.PORT_ADD))
        elif message.port >= len(self.ports):
            raise VirtqueueError(f"port {message.port} of {len(self.ports)}")
        elif message.event == Event.PORT_READY and message.value:
            # The name is sent last: a script that waits for it in the guest finds the port open.
            self._report(Control(message.port, Event.PORT_OPEN))
            name = self.ports[message.port].name
            self._report(Control(message.port, Event.PORT_NAME, name=name))
        elif message.event == Event.PORT_OPEN:
            port = self.ports[message.port]
            if message.value:
                port.opened.set()
            else:
                port.record_closed()

    def _report(self, message: Control) -> None:
        self._control.put(message.encode())


class _QueueServer:
    """Serves one queue from `run` until `stop`; see `p2pcloopd.block.vhost_queue.QueueServer`."""

    def __init__(self, queue: Virtqueue, vring: Vring) -> None:
        assert vring.kick is not None
        self.queue = queue
        self._vring = vring
        self._kick = vring.kick
        self._serving = trio.CancelScope()
        self._ended = trio.Event()
        self._is_idle = False
        self._idle = trio.Event()

    async def run(self) -> None:
        """Serve until `stop`, or until the ring is broken."""
        try:
            with self._serving:
                await self._serve()
        except (VirtqueueError, OSError) as error:
            _log.error("the guest's console device: queue stopped: %s", str(error))
        finally:
            self.queue.release()
            self._ended.set()
            self._idle.set()

    async def stop(self) -> None:
        """Touch the ring no more."""
        self._serving.cancel()
        await self._ended.wait()

    async def catch_up(self) -> None:
        """Return when all that the guest has put into the ring is done."""
        while not self._ended.is_set() and (not self._is_idle or self.queue.want_kicks()):
            await self._idle.wait()

    async def _serve(self) -> None:
        raise NotImplementedError

    async def _next(self) -> Chain:
        while (chain := self.queue.pop()) is None:
            if not self.queue.want_kicks():
                self._is_idle = True
                self._idle.set()
                self._idle = trio.Event()
                await trio.lowlevel.wait_readable(self._kick)
                self._is_idle = False
                if not os.read(self._kick, 8):
                    raise VirtqueueError("the kick descriptor was closed")
        return chain

    def _give_back(self, chain: Chain, written: int) -> None:
        for view in (*chain.readable, *chain.writable):
            view.release()
        self.queue.push(chain, written)
        if self.queue.publish() and self._vring.call is not None:
            with suppress(BlockingIOError):  # so many calls wait there that one more says nothing
                os.write(self._vring.call, _ONE)


class _ToGuest(_QueueServer):
    """Fills the guest's buffers with what is put into a port."""

    def __init__(
        self, queue: Virtqueue, vring: Vring, port: Port, on_end: Callable[[], None]
    ) -> None:
        super().__init__(queue, vring)
        self._port = port
        self._on_end = on_end

    async def _serve(self) -> None:
        while True:
            chain = await self._next()
            room = sum(map(len, chain.writable))
            if not room:
                raise VirtqueueError("a buffer that cannot be written")
            data = await self._port.take(room)
            if not data:
                self._on_end()
                await trio.sleep_forever()
            self._give_back(chain, vc.fill(chain.writable, data))


class _FromGuest(_QueueServer):
    """Hands on what the guest writes."""

    def __init__(
        self, queue: Virtqueue, vring: Vring, deliver: Callable[[bytes], Awaitable[None]]
    ) -> None:
        super().__init__(queue, vring)
        self._deliver = deliver

    async def _serve(self) -> None:
        while True:
            chain = await self._next()
            data = b"".join(chain.readable)
            await self._deliver(data)
            self._give_back(chain, 0)
