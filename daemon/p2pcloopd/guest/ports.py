"""Byte streams into a guest: the ports of a virtio console.

User-Mode Linux gets the device from this process, over vhost-user (`PortsDevice`). QEMU has one of
its own, whose ports are sockets to this process (machine/qemu_ports.py).

Unlike a serial line or a terminal, a port carries every byte unchanged, makes the writer wait while
the reader is slow, and tells each side when the other one closes. It needs no network, and only a
kernel module, which our initramfs inserts. A guest can have any number of ports.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from p2pcloop.errors import BusyError
from p2pcloop.protocol import virtio_console as vc
from p2pcloop.protocol.vhost_state import Vring
from p2pcloop.protocol.virtio_console import Control, Event
from p2pcloop.protocol.virtqueue import Chain, Virtqueue, VirtqueueError
from p2pcloop.words import tr
from p2pcloopd.block.vhost_server import serve_device

_ONE = (1).to_bytes(8, "little")

MAX_PIECE = 1 << 16
"""Bytes of the guest's that are handed on at once, at most."""

_ROOM = 1 << 16
"""Bytes for the guest that are kept here until it has room."""

_CONTROL_QUEUES = (vc.CONTROL_TO_GUEST, vc.CONTROL_FROM_GUEST)

_log = logging.getLogger(__name__)


class Port:
    """One port, our side.

    Attributes:
        name: as the guest finds it; "" for none.
        ready: set once the guest knows the port, or it was removed.
        opened: set once the guest has opened it, or it was removed.
        closed: set once the guest has closed it, or it was removed.
    """

    def __init__(
        self, name: str, receive: Callable[[bytes], Awaitable[None]] | None = None
    ) -> None:
        """Make a port that no device offers yet.

        Args:
            name: a file name.
            receive: called with what the guest writes, at most `MAX_PIECE` bytes at once; the guest
                waits while it is awaited.
        """
        self.name = name
        self.ready = trio.Event()
        self.opened = trio.Event()
        self.closed = trio.Event()
        self._receive = receive
        self._receiving = trio.CancelScope()
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

    def record_opened(self) -> None:
        """Record that the guest opened the port."""
        self.opened.set()
        self._report()

    def record_closed(self) -> None:
        """Record that the guest closed the port, and drop what waits for it."""
        self.closed.set()
        self._pieces.clear()
        self._size = 0
        self._report()

    def record_removed(self) -> None:
        """Record that the port is gone: what the guest has written there is dropped, and no task
        waits for the guest any more."""
        self.ready.set()
        self.opened.set()
        self._ended = True
        self._receive = None
        self._receiving.cancel()
        self.record_closed()

    async def take(self, limit: int) -> bytes:
        """Return what is to be written next, at most one `put`; empty at the end."""
        # Linux's driver throws away what is sent before the port is open.
        while not (self._pieces and self.opened.is_set()):
            if self._ended and (self.opened.is_set() or self.closed.is_set()):
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
            with trio.CancelScope() as self._receiving:
                await self._receive(data)

    def _report(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class GuestPorts(Protocol):
    """The ports of one boot of a guest."""

    async def add(self, ports: Sequence[Port]) -> list[int]:
        """Offer more ports, open on our side; see `PortsDevice.add`."""

    def remove(self, port: Port) -> None:
        """Remove a port, if it is there: writes to it in the guest fail."""

    async def drain(self, port: Port) -> None:
        """Return when the guest has closed a port, and all that it wrote there was delivered."""

    async def serve(self) -> None:
        """Carry data until the guest has ended."""

    def close(self) -> None:
        """Record that the guest is gone, and all ports with it."""


MakePorts = Callable[[Sequence[Port], int], GuestPorts]
"""Makes the ports of a boot: those that it has from the beginning, and how many more at most."""


class PortsUser(Protocol):
    """What has ports in a guest: a channel, or a command."""

    async def use_ports(self, make: MakePorts) -> None:
        """Have ports in a boot of the guest, to its end."""


class _Place:
    """One of the device's numbers.

    Attributes:
        port: the port that has this number now, or None.
        heard: whether what the guest writes there is this port's; until then it is dropped.
    """

    def __init__(self, port: Port | None = None) -> None:
        self.port = port
        self.heard = port is not None
        self._changed = trio.Event()

    def set(self, port: Port | None) -> None:
        """Have another port here, or none."""
        self.port, self.heard = port, False
        self._changed.set()
        self._changed = trio.Event()

    async def next(self, ended: Port | None) -> Port:
        """Return the port that is here, once it is another one than `ended`."""
        while self.port is None or self.port is ended:
            await self._changed.wait()
        return self.port

    async def deliver(self, data: bytes) -> None:
        """Hand on what the guest wrote here."""
        if self.port is not None and self.heard:
            await self.port.deliver(data)


class PortsDevice:
    """The device: what `serve_front_end` serves."""

    def __init__(
        self,
        ports: Sequence[Port],
        spare: int = 0,
        connection: trio.socket.SocketType | None = None,
    ) -> None:
        """Make a device.

        Args:
            ports: those that it has from the beginning.
            spare: how many more it can have at a time.
            connection: to the front end that `serve` serves.
        """
        self._connection = connection
        self._places = [*map(_Place, ports), *(_Place() for _ in range(spare))]
        self.features = vc.F_VERSION_1 | vc.F_MULTIPORT
        self.config = vc.config_space(len(self._places))
        self.queues = vc.queue_count(len(self._places))
        self._control = Port("")
        self._control.opened.set()
        self._servers: dict[int, _QueueServer] = {}
        self._is_ready = False

    async def serve(self) -> None:
        """Serve the front end until it leaves."""
        assert self._connection is not None
        await serve_device(self, self._connection)

    def serve_queue(self, index: int, queue: Virtqueue, vring: Vring) -> _QueueServer:
        """What serves one queue."""
        self._servers[index] = server = self._server(index, queue, vring)
        return server

    def _server(self, index: int, queue: Virtqueue, vring: Vring) -> _QueueServer:
        if index == vc.CONTROL_TO_GUEST:
            return _ToGuest(queue, vring, _Place(self._control), self.hang_up)
        if index == vc.CONTROL_FROM_GUEST:
            return _FromGuest(queue, vring, self._obey, vc.MAX_CONTROL)
        number, to_guest = vc.port_of(index)
        place = self._places[number]
        if to_guest:
            return _ToGuest(queue, vring, place, self.hang_up)
        return _FromGuest(queue, vring, place.deliver)

    def hang_up(self, port: Port) -> None:
        """Tell the guest that our side of a port is closed: its reads end, its writes fail."""
        number = self._number(port)
        if number is not None:
            self._report(Control(number, Event.PORT_OPEN, 0))

    async def add(self, ports: Sequence[Port]) -> list[int]:
        """Offer more ports, open on our side.

        Returns:
            Their numbers, once the guest has them: all but the last one can be read there. Linux's
            driver obeys in order, and the answer about the last port comes behind the opening of
            those before it. Otherwise a reader would find the end of its input at once.

        Raises:
            BusyError: there are no numbers left.
        """
        free = (number for number, place in enumerate(self._places) if place.port is None)
        numbers = list(itertools.islice(free, len(ports)))
        if len(numbers) < len(ports):
            raise BusyError("all ports into the guest are in use")
        for number, port in zip(numbers, ports, strict=True):
            self._places[number].set(port)
            self._report(Control(number, Event.PORT_ADD))
            self._report(Control(number, Event.PORT_OPEN))
        await ports[-1].ready.wait()
        # What still comes for ports that had these numbers before is in the rings by now.
        for number in numbers:
            await self._catch_up(number)
            self._places[number].heard = True
        return numbers

    def remove(self, port: Port) -> None:
        """Remove a port, if it is there: writes to it in the guest fail, and its number is free."""
        number = self._number(port)
        if number is not None:
            self._report(Control(number, Event.PORT_REMOVE))
            self._places[number].set(None)
        port.record_removed()

    def close(self) -> None:
        """Record that the guest is gone, and all ports with it."""
        for place in self._places:
            if place.port is not None:
                place.port.record_removed()

    async def drain(self, port: Port) -> None:
        """Return when the guest has closed a port, and all that it wrote there was delivered."""
        await port.closed.wait()
        number = self._number(port)
        if number is not None:
            await self._catch_up(number)

    async def _catch_up(self, number: int) -> None:
        for index, server in self._servers.items():
            if index not in _CONTROL_QUEUES and vc.port_of(index) == (number, False):
                await server.catch_up()

    def _number(self, port: Port) -> int | None:
        numbers = (number for number, place in enumerate(self._places) if place.port is port)
        return next(numbers, None)

    async def _obey(self, data: bytes) -> None:
        message = vc.parse_control(data)
        if message.event == Event.DEVICE_READY:
            if message.value and not self._is_ready:  # a guest that repeats it gets no answer
                self._is_ready = True
                for number, place in enumerate(self._places):
                    if place.port is not None:
                        self._report(Control(number, Event.PORT_ADD))
        elif message.port >= len(self._places):
            raise VirtqueueError(
                tr(
                    "port {port} of {places_count}",
                    port=message.port,
                    places_count=len(self._places),
                )
            )
        elif (port := self._places[message.port].port) is not None:  # it was not removed meanwhile
            self._record(message, port)

    def _record(self, message: Control, port: Port) -> None:
        """Take what the guest says of a port."""
        if message.event == Event.PORT_READY:
            if message.value and not port.ready.is_set():
                port.ready.set()
                if port.name:
                    # The name is sent last: a script that waits for it in the guest finds it open.
                    self._report(Control(message.port, Event.PORT_OPEN))
                    self._report(Control(message.port, Event.PORT_NAME, name=port.name))
        elif message.event == Event.PORT_OPEN and port.ready.is_set():
            # Without the answer to its offer, this is about the port that had its number before.
            if message.value:
                port.record_opened()
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
    """Fills the guest's buffers with what is put into the port that is at a place."""

    def __init__(
        self, queue: Virtqueue, vring: Vring, place: _Place, on_end: Callable[[Port], None]
    ) -> None:
        super().__init__(queue, vring)
        self._place = place
        self._on_end = on_end

    async def _serve(self) -> None:
        while True:
            chain = await self._next()
            room = sum(map(len, chain.writable))
            if not room:
                raise VirtqueueError("a buffer that cannot be written")
            self._give_back(chain, vc.fill(chain.writable, await self._take(room)))

    async def _take(self, room: int) -> bytes:
        port: Port | None = None
        while True:
            port = await self._place.next(port)
            if data := await port.take(room):
                return data
            self._on_end(port)


class _FromGuest(_QueueServer):
    """Hands on what the guest writes."""

    def __init__(
        self,
        queue: Virtqueue,
        vring: Vring,
        deliver: Callable[[bytes], Awaitable[None]],
        limit: int | None = None,
    ) -> None:
        """Make it.

        Args:
            deliver: gets what was written.
            limit: bytes of a message that comes whole or not at all; None for a stream, which comes
                in pieces of `MAX_PIECE` bytes at most, however large the guest's buffers are.
        """
        super().__init__(queue, vring)
        self._deliver = deliver
        self._limit = limit

    async def _serve(self) -> None:
        while True:
            chain = await self._next()
            if self._limit is not None:
                size = sum(map(len, chain.readable))
                if size > self._limit:
                    raise VirtqueueError(tr("a message of {size} bytes", size=size))
                await self._deliver(b"".join(chain.readable))
            else:
                for view in chain.readable:
                    for start in range(0, len(view), MAX_PIECE):
                        await self._deliver(bytes(view[start : start + MAX_PIECE]))
            self._give_back(chain, 0)
