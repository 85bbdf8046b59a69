"""Ports into a guest; the guest's driver is played by rings in memory."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pcloop.protocol import virtio_console as vc
from p2pcloop.protocol.vhost_state import Vring
from p2pcloop.protocol.virtio_console import Control, Event
from p2pcloopd.guest.ports import MAX_PIECE, Port, PortsDevice
from tests.support.vring import WRITE, Driver
from tests.support.waiting import BOUND


class Guest:
    """One queue of a device, from the guest's side."""

    def __init__(self, device: PortsDevice, index: int, nursery: trio.Nursery) -> None:
        self.driver = Driver(memoryview(bytearray(1 << 20)), size=64)
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        vring = Vring(kick=self._kick_fd)
        self.server = device.serve_queue(index, self.driver.virtqueue(0), vring)
        nursery.start_soon(self._live)

    async def _live(self) -> None:
        try:
            await self.server.run()
        finally:
            os.close(self._kick_fd)

    async def write(self, data: bytes) -> None:
        """Hand over a buffer."""
        address = self.driver.allocate(len(data), data)
        self.driver.offer([(address, len(data), 0)])
        await self._kick()

    async def read(self, room: int = 64) -> int:
        """Offer a buffer; its address."""
        address = self.driver.allocate(room)
        self.driver.offer([(address, room, WRITE)])
        await self._kick()
        return address

    async def _kick(self) -> None:
        os.eventfd_write(self._kick_fd, 1)
        await wait_all_tasks_blocked()


async def test_what_is_sent_waits_until_the_guest_has_opened_the_port() -> None:
    """Linux's driver throws away what comes sooner. The end comes behind the rest."""
    port = Port("stdin")
    device = PortsDevice([port])
    async with trio.open_nursery() as nursery:
        data, control = Guest(device, 0, nursery), Guest(device, vc.CONTROL_TO_GUEST, nursery)
        told = Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        port.put(b"abc")
        port.end()
        first = await data.read()
        for _ in ("open", "name"):
            await control.read()
        await told.write(Control(0, Event.PORT_READY).encode())
        assert data.driver.bytes_at(first, 4) == bytes(4)
        await told.write(Control(0, Event.PORT_OPEN).encode())
        assert data.driver.bytes_at(first, 4) == b"abc\0"
        await data.read()
        closed = await control.read()
        assert control.driver.bytes_at(closed, 8) == Control(0, Event.PORT_OPEN, 0).encode()
        nursery.cancel_scope.cancel()


async def test_a_port_is_open_before_it_has_a_name() -> None:
    device = PortsDevice([Port("stdout")])
    async with trio.open_nursery() as nursery:
        control = Guest(device, vc.CONTROL_TO_GUEST, nursery)
        told = Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        buffers = [await control.read() for _ in range(3)]
        await told.write(Control(0, Event.DEVICE_READY).encode())
        await told.write(Control(0, Event.PORT_READY).encode())
        sent = [
            Control(0, Event.PORT_ADD),
            Control(0, Event.PORT_OPEN),
            Control(0, Event.PORT_NAME, name="stdout"),
        ]
        for address, message in zip(buffers, sent, strict=True):
            data = message.encode()
            assert control.driver.bytes_at(address, len(data)) == data
        nursery.cancel_scope.cancel()


async def test_a_port_is_drained_when_all_of_it_was_delivered() -> None:
    """The guest closes the port while the reader of its output is slow."""
    got, may_read = b"", trio.Event()

    async def receive(data: bytes) -> None:
        nonlocal got
        await may_read.wait()
        got += data

    port = Port("stdout", receive)
    device = PortsDevice([port])
    drained = trio.Event()

    async def drain() -> None:
        await device.drain(port)
        drained.set()

    async with trio.open_nursery() as nursery:
        data = Guest(device, 1, nursery)
        told = Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        nursery.start_soon(drain)
        for piece in (b"one ", b"two"):
            await data.write(piece)
        await told.write(Control(0, Event.PORT_READY).encode())
        await told.write(Control(0, Event.PORT_OPEN, 0).encode())
        assert port.closed.is_set()
        assert not drained.is_set()
        may_read.set()
        await drained.wait()
        assert got == b"one two"
        nursery.cancel_scope.cancel()


async def test_whoever_sends_waits_for_a_slow_guest() -> None:
    port = Port("stdin")
    port.opened.set()
    with trio.move_on_after(0.05) as scope:
        await port.send(bytes(1 << 20))
    assert scope.cancelled_caught
    assert await port.take(10) == bytes(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.send, b"more")
        await wait_all_tasks_blocked()
        port.record_closed()  # no program will read it


@pytest.mark.parametrize("message", [b"short", Control(7, Event.PORT_READY).encode()])
async def test_nonsense_stops_the_queue_alone(
    message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    device = PortsDevice([Port("stdin")])
    async with trio.open_nursery() as nursery:
        told = Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        await told.write(message)
        await told.server.stop()
    assert "queue stopped" in caplog.text


async def added(device: PortsDevice, ports: list[Port], told: Guest) -> None:
    """Add two ports, which the guest opens; it closes the ones before first."""
    numbers: list[int] = []

    async def add() -> None:
        numbers.extend(await device.add(ports))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        await wait_all_tasks_blocked()
        assert not numbers
        await told.write(Control(2, Event.PORT_OPEN, 0).encode())  # of the port before
        for number in (1, 2):
            await told.write(Control(number, Event.PORT_READY).encode())
            await told.write(Control(number, Event.PORT_OPEN).encode())
    assert numbers == [1, 2]
    assert not ports[1].closed.is_set()
    assert ports[1].opened.is_set()


async def test_ports_come_and_go_while_the_guest_runs() -> None:
    """What was written to one that is gone, or is not open yet, does not come to the next one."""
    got: list[bytes] = []

    async def receive(data: bytes) -> None:
        got.append(data)

    device = PortsDevice([Port("first")], spare=2)
    async with trio.open_nursery() as nursery:
        control = Guest(device, vc.CONTROL_TO_GUEST, nursery)
        told = Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        data = Guest(device, 5, nursery)  # from port 2
        incoming = Guest(device, 2 + 2, nursery)  # to port 1
        heard = [await control.read() for _ in range(12)]
        for number in (1, 2):  # not offered yet
            await told.write(Control(number, Event.PORT_READY).encode())
        for turn in (1, 2):
            ports = [Port("", receive), Port("", receive)]
            await added(device, ports, told)
            ports[0].put(b"in%d" % turn)
            address = await incoming.read()
            assert incoming.driver.bytes_at(address, 3) == b"in%d" % turn
            for port in ports:
                device.remove(port)
            assert ports[0].closed.is_set()
            await data.write(b"late")
        messages = [control.driver.bytes_at(address, 8) for address in heard]
        turn_events = [
            *(Control(n, event) for n in (1, 2) for event in (Event.PORT_ADD, Event.PORT_OPEN)),
            *(Control(n, Event.PORT_REMOVE) for n in (1, 2)),
        ]
        assert messages == [message.encode() for message in turn_events * 2]
        assert got == []
        nursery.cancel_scope.cancel()


async def test_a_reader_that_is_taken_away_holds_nothing_up() -> None:
    async def never(_data: bytes) -> None:
        await trio.sleep_forever()

    port = Port("out", never)
    device = PortsDevice([port])
    async with trio.open_nursery() as nursery:
        data = Guest(device, 1, nursery)
        await data.write(b"one")
        device.remove(port)
        await wait_all_tasks_blocked()
        await data.write(b"two")
        with trio.fail_after(BOUND):
            await data.server.catch_up()
        nursery.cancel_scope.cancel()


async def test_a_guest_that_repeats_itself_gets_no_more_answers() -> None:
    device = PortsDevice([Port("control")])
    async with trio.open_nursery() as nursery:
        told = Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        for _ in range(20):
            await told.write(Control(0, Event.DEVICE_READY).encode())
            await told.write(Control(0, Event.PORT_READY).encode())
        assert len(device._control._pieces) == 3
        nursery.cancel_scope.cancel()


async def test_a_huge_buffer_is_handed_on_in_pieces() -> None:
    sizes: list[int] = []

    async def receive(data: bytes) -> None:
        sizes.append(len(data))

    device = PortsDevice([Port("out", receive)])
    async with trio.open_nursery() as nursery:
        data, told = Guest(device, 1, nursery), Guest(device, vc.CONTROL_FROM_GUEST, nursery)
        await data.write(bytes(3 * MAX_PIECE + 1))
        assert sizes == [MAX_PIECE] * 3 + [1]
        await told.write(bytes(vc.MAX_CONTROL + 1))
        await told.server.stop()  # it has ended
        nursery.cancel_scope.cancel()
