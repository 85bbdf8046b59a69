"""The ports of a guest in QEMU: those of its virtio console, each with a socket to this process.

QEMU's device is its own: of the devices that QEMU 7.2 takes from another process (vhost-user) none
is a console. A port is plugged in when it is needed, and gets one end of a pair of sockets. QEMU
tells when the guest opens or closes it; our closing of the socket is the end of the stream there.

QEMU loads the state of a guest only into a machine with the same ports. So a resumed guest first
has those that it had, and then those that are asked for here. An old one that has the name of a
new one becomes that one; of the others all output is dropped, until the guest closes them.

A guest that stands still hears of a port that went only later, and a program in it may open that
one in place of its successor of the same number. QEMU does not tell when a guest has heard of it.
But Linux's driver obeys in order: once it has opened a port, all that went before that one came are
gone. So a number rests until then.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from p2pcloop.errors import BusyError, GuestError, MismatchError
from p2pcloop.protocol.qmp import MachineEvent
from p2pcloop.words import tr
from p2pcloopd.guest.machine.qmp_client import Qmp
from p2pcloopd.guest.ports import MAX_PIECE, Port

PORTS_BUS = "ports.0"
"""The bus of the device that the command line makes (qemu_command.py)."""

FIRST_NUMBER = 1
"""Of a port. QEMU keeps number 0 for a console."""

MAX_PORTS = 31
"""QEMU's, with number 0."""

_SETTLE_SECONDS = 5.0
"""How long a QEMU that takes no commands may take to end."""


class _Plug:
    """A port that is plugged in.

    Attributes:
        serial: how many ports were plugged in until it was; 0 before.
        id: QEMU's name of it.
        raw, sock: our end, and the same for trio; None before it is there.
        count: bytes that came.
        is_in: whether QEMU has it.
        is_stray: whether it is one of before, which no command has here.
        gone: cancelled when it is pulled out.
    """

    def __init__(self, port: Port, number: int) -> None:
        self.port = port
        self.number = number
        self.serial = 0
        self.id = ""
        self.raw: socket.socket | None = None
        self.sock: trio.socket.SocketType | None = None
        self.count = 0
        self.is_in = False
        self.is_stray = False
        self.gone = trio.CancelScope()
        self._is_reading = False
        self._changed = trio.Event()

    async def receive(self) -> bytes:
        """Return what the guest wrote next, once all before was delivered; empty at the end."""
        assert self.raw is not None
        data: bytes | None = None
        while data is None:
            self._report(is_reading=True)
            try:
                await trio.lowlevel.wait_readable(self.raw)
                # Without a checkpoint behind it, at which it would look as if nothing had come.
                data = self.raw.recv(MAX_PIECE)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                data = b""
        self._report(is_reading=not data)
        self.count += len(data)
        return data

    async def catch_up(self) -> None:
        """Return once all that lies in the socket was delivered."""
        while not (self._is_reading and self._is_empty()):
            await self._changed.wait()

    def _is_empty(self) -> bool:
        assert self.sock is not None
        waiting = array.array("i", [0])
        if self.sock.fileno() >= 0:
            fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, waiting)
        return not waiting[0]

    def _report(self, *, is_reading: bool) -> None:
        self._is_reading = is_reading
        self._changed.set()
        self._changed = trio.Event()


class QemuPorts:
    """See `GuestPorts`.

    Attributes:
        inherited: set once a guest that is resumed has the ports that it had.
        loaded: to be set once it has its state.
    """

    def __init__(
        self,
        qmp: Qmp,
        ports: Sequence[Port],
        spare: int = 0,
        old: Sequence[tuple[int, str]] | None = None,
    ) -> None:
        """Plug nothing in yet.

        Args:
            qmp: the monitor; its events are given to `take_event`.
            ports: those that the guest has from the beginning.
            spare: how many more it can have at a time.
            old: number and name of each port that a guest had that is resumed; None if it boots.
        """
        self.inherited = trio.Event()
        self.loaded = trio.Event()
        self._old = old or ()
        if old is None:
            self.loaded.set()
        self._changing = trio.Lock()
        self._qmp = qmp
        self._first = list(ports)
        self._most = len(ports) + spare
        self._plugs: dict[int, _Plug] = {}
        self._by_id: dict[str, _Plug] = {}
        self._nursery: trio.Nursery | None = None
        self._plugged = 0
        self._opened = 0
        """The last one of those that the guest has opened."""
        self._pulled: dict[int, int] = {}
        """By number, how many ports had been plugged in when it was pulled out."""
        self._changed = trio.Event()
        assert self._most <= MAX_PORTS - FIRST_NUMBER

    async def serve(self) -> None:
        """Plug the first ports in, and carry data until QEMU ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            # Not before the disk's server has answered, which may wait for its image.
            await self._qmp.ready.wait()
            with suppress(GuestError):  # it has ended
                more = await self._inherit()
                self.inherited.set()
                await self.loaded.wait()
                if more:
                    await self.add(more)
            await self._qmp.ended.wait()
            nursery.cancel_scope.cancel()

    async def add(self, ports: Sequence[Port]) -> list[int]:
        """Plug ports in; return their numbers.

        Raises:
            BusyError: there are no numbers left.
            GuestError: QEMU does not make them.
        """
        numbers = await self._rested(len(ports))
        plugs = [_Plug(port, number) for port, number in zip(ports, numbers, strict=True)]
        for plug in plugs:
            self._plugs[plug.number] = plug
        async with self._changing:
            for plug in plugs:
                await self._plug_in(plug)
        return [plug.number for plug in plugs]

    async def _rested(self, count: int) -> list[int]:
        """Return free numbers that have rested, once there are enough; if nothing tells that any
        more have, those that have rested longest.

        Raises:
            BusyError: too few are free.
        """
        while True:
            if sum(not plug.is_stray for plug in self._plugs.values()) + count > self._most:
                raise BusyError("all ports into the guest are in use")
            free = [n for n in range(FIRST_NUMBER, MAX_PORTS) if n not in self._plugs]
            if len(free) < count:
                raise BusyError("all ports into the guest are in use")
            numbers = sorted(free, key=lambda number: self._pulled.get(number, -1))[:count]
            last = max(self._pulled.get(number, -1) for number in numbers)
            if last < self._opened or not self._is_any_to_open(last):
                return numbers
            await self._changed.wait()

    def _is_any_to_open(self, last: int) -> bool:
        """Whether the guest will open a port that came after so many."""
        return any(
            (plug.serial > last or not plug.is_in) and not plug.port.opened.is_set()
            for plug in self._plugs.values()
        )

    def remove(self, port: Port) -> None:
        """Pull a port out, if it is there."""
        plug = self._plug_of(port)
        if plug is not None:
            plug.gone.cancel()
            self._by_id.pop(plug.id, None)
            if self._nursery is not None and not self._qmp.ended.is_set():
                self._nursery.start_soon(self._pull_out, plug)
        port.record_removed()

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[list[tuple[int, str]]]:
        """Plug nothing in meanwhile, and pull nothing out; give number and name of each port."""
        async with self._changing:
            yield [(plug.number, plug.port.name) for plug in self._plugs.values() if plug.is_in]

    async def drain(self, port: Port) -> None:
        """Return when the guest has closed a port, and all that it wrote there was delivered.

        QEMU may tell of the closing before it has handed on what was written: it waits where the
        socket is full. So its main loop is let go round until nothing more comes.
        """
        await port.closed.wait()
        plug = self._plug_of(port)
        with suppress(GuestError):
            while plug is not None and not self._qmp.ended.is_set():
                before = plug.count
                for _ in range(2):
                    await self._qmp.execute("query-name")
                await plug.catch_up()
                if plug.count == before:
                    return

    def close(self) -> None:
        """Record that the guest is gone."""
        for plug in self._plugs.values():
            plug.port.record_removed()

    def take_event(self, event: MachineEvent) -> None:
        """Note what the guest does with a port."""
        if event.name != "VSERPORT_CHANGE":
            return
        plug = self._by_id.get(str(event.data.get("id")))
        if plug is None:
            return
        if event.data.get("open"):
            plug.port.ready.set()
            plug.port.record_opened()
            self._opened = max(self._opened, plug.serial)
            self._report()
        elif plug.port.opened.is_set():
            plug.port.record_closed()
            if plug.is_stray:
                self.remove(plug.port)

    async def _inherit(self) -> list[Port]:
        """Plug in what a guest had that is resumed; return the first ports that are not among
        that.

        Raises:
            GuestError: QEMU has ended.
            MismatchError: it refuses them, and would wait for ever for the guest's state.
        """
        new = {port.name: port for port in self._first if port.name}
        async with self._changing:
            for number, name in self._old:
                port = new.pop(name, None)
                plug = _Plug(port or Port(name), number)
                plug.is_stray = port is None
                self._plugs[number] = plug
                try:
                    await self._plug_in(plug)
                except GuestError as err:
                    with trio.move_on_after(_SETTLE_SECONDS):
                        await self._qmp.ended.wait()
                    if self._qmp.ended.is_set():
                        raise
                    raise MismatchError(
                        tr("the guest had ports that QEMU refuses: {err}", err=err)
                    ) from err
        taken = [plug.port for plug in self._plugs.values()]
        return [port for port in self._first if port not in taken]

    async def _plug_in(self, plug: _Plug) -> None:
        assert self._nursery is not None
        # Names are not used again: an event may still be about the port that was there before.
        self._plugged += 1
        plug.serial = self._plugged
        plug.id = f"port{plug.number}-{plug.serial}"
        ours, theirs = socket.socketpair()
        plug.raw, plug.sock = ours, trio.socket.from_stdlib_socket(ours)
        try:
            await self._connect(plug, theirs)
        except BaseException:
            plug.sock.close()
            raise
        plug.is_in = True
        self._nursery.start_soon(self._carry, plug)

    async def _connect(self, plug: _Plug, theirs: socket.socket) -> None:
        """Have QEMU make a port, with this end of a pair of sockets."""
        with theirs:
            await self._qmp.execute("getfd", {"fdname": plug.id}, theirs.fileno())
        address = {"type": "fd", "data": {"str": plug.id}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self._qmp.execute("chardev-add", {"id": plug.id, "backend": backend})
        self._by_id[plug.id] = plug
        device = {"driver": "virtserialport", "bus": PORTS_BUS, "nr": plug.number}
        named = {"name": plug.port.name} if plug.port.name else {}
        await self._qmp.execute("device_add", device | {"id": plug.id, "chardev": plug.id} | named)

    async def _pull_out(self, plug: _Plug) -> None:
        async with self._changing:
            with suppress(GuestError):  # QEMU ends
                await self._qmp.execute("device_del", {"id": plug.id})
                await self._qmp.execute("chardev-remove", {"id": plug.id})
            if self._plugs.get(plug.number) is plug:
                del self._plugs[plug.number]
                self._pulled[plug.number] = self._plugged
            self._report()

    async def _carry(self, plug: _Plug) -> None:
        assert plug.sock is not None
        with plug.sock, plug.gone:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_in, plug)
                await self._carry_out(plug)
                nursery.cancel_scope.cancel()

    async def _carry_in(self, plug: _Plug) -> None:
        """What goes into the guest; its end is the end of the socket."""
        assert plug.sock is not None
        with suppress(OSError):
            while data := await plug.port.take(MAX_PIECE):
                while data:
                    data = data[await plug.sock.send(data) :]
            plug.sock.shutdown(socket.SHUT_WR)

    async def _carry_out(self, plug: _Plug) -> None:
        while data := await plug.receive():
            await plug.port.deliver(data)

    def _report(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _plug_of(self, port: Port) -> _Plug | None:
        return next((plug for plug in self._plugs.values() if plug.port is port), None)
