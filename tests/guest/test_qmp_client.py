"""The connection to QEMU's monitor, and the ports of a guest in QEMU; QEMU is played by a task."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from trio.testing import MockClock

from p2pcloop.errors import BusyError, FormatError, GuestError, MismatchError
from p2pcloop.protocol.qmp import MachineEvent
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.machine.qemu_ports import FIRST_NUMBER, MAX_PORTS, QemuPorts
from p2pcloopd.guest.machine.qmp_client import Qmp
from p2pcloopd.guest.ports import Port
from tests.support.descriptors import open_descriptors
from tests.support.played_qemu import GREETING, Qemu, connected
from tests.support.waiting import BOUND


async def test_commands_are_answered_in_any_order_and_events_come_between() -> None:
    events: list[MachineEvent] = []
    async with connected(events.append) as (qmp, qemu):
        qemu.silent = {"stop"}
        answers: list[object] = []

        async def stop() -> None:
            answers.append(await qmp.execute("stop"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            while "stop" not in qemu.names():
                await trio.testing.wait_all_tasks_blocked()
            assert await qmp.execute("query-name") == {"did": "query-name"}
            await qemu.tell("SHUTDOWN", guest=True, reason="guest-reset")
            await qemu.send({"return": "late", "id": 1})
    assert answers == ["late"]
    assert events == [MachineEvent("SHUTDOWN", {"guest": True, "reason": "guest-reset"})]
    assert qemu.names()[0] == "qmp_capabilities"


async def test_a_refusal_and_an_end_are_errors() -> None:
    async with connected() as (qmp, qemu):
        qemu.refused = {"device_add"}
        with pytest.raises(GuestError, match="device_add: no such device"):
            await qmp.execute("device_add", {"driver": "x"})
        qemu.silent = {"stop"}

        async def stop() -> None:
            with pytest.raises(GuestError, match="ended"):
                await qmp.execute("stop")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            while "stop" not in qemu.names():
                await trio.testing.wait_all_tasks_blocked()
            qemu.sock.shutdown(socket.SHUT_RDWR)
        with trio.fail_after(BOUND):
            await qmp.ended.wait()
        with pytest.raises(GuestError, match="has ended"):
            await qmp.execute("cont")


async def test_a_qemu_that_does_not_answer(autojump_clock: MockClock) -> None:
    async with connected() as (qmp, qemu):
        qemu.silent = {"cont"}
        with pytest.raises(GuestError, match="does not answer"):
            await qmp.execute("cont")
    assert autojump_clock.current_time() >= 10


async def test_what_a_qemu_said_before_it_ended_is_taken() -> None:
    events: list[MachineEvent] = []
    ours, theirs = trio.socket.socketpair()
    with ours:
        with theirs:
            qemu = Qemu(theirs)
            await qemu.send(GREETING)
            await qemu.tell("SHUTDOWN", reason="guest-shutdown")
        qmp = Qmp(ours, events.append)
        await qmp.run()
    assert events == [MachineEvent("SHUTDOWN", {"reason": "guest-shutdown"})]
    assert qmp.ended.is_set()


async def test_what_is_no_qmp_is_an_error() -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        await theirs.send(b"SSH-2.0\r\n")
        with pytest.raises(FormatError):
            await Qmp(ours, lambda _: None).run()


@asynccontextmanager
async def ports_of(
    *first: Port, spare: int = 0, old: list[tuple[int, str]] | None = None
) -> AsyncIterator[tuple[QemuPorts, Qemu]]:
    served: list[QemuPorts] = []

    def take(event: MachineEvent) -> None:
        served[0].take_event(event)

    async with connected(take) as (qmp, qemu):
        served.append(QemuPorts(qmp, first, spare, old))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served[0].serve)
            while qemu.names().count("device_add") < len(first if old is None else old):
                await trio.lowlevel.checkpoint()
            yield served[0], qemu
            nursery.cancel_scope.cancel()
        served[0].close()


def plugged(qemu: Qemu) -> list[tuple[str, int]]:
    """Names for QEMU, and numbers, of the ports so far."""
    return [(given["id"], given["nr"]) for name, given in qemu.asked if name == "device_add"]


async def test_a_port_carries_bytes_both_ways_and_its_end() -> None:
    written = bytearray()

    async def receive(data: bytes) -> None:
        written.extend(data)

    port = Port("stdin", receive)
    with trio.fail_after(BOUND):
        async with ports_of(port) as (ports, qemu):
            ((name, number),) = plugged(qemu)
            assert number == 1  # QEMU keeps 0
            assert qemu.asked[-1][1]["name"] == "stdin"
            sock = qemu.fds[name]
            await port.send(b"before it is open")
            await qemu.tell("VSERPORT_CHANGE", id=name, open=True)
            assert await sock.recv(100) == b"before it is open"
            await port.send(b"more")
            port.end()
            assert await sock.recv(100) == b"more"
            assert await sock.recv(100) == b""
            await sock.send(b"x" * 100_000)
            await qemu.tell("VSERPORT_CHANGE", id=name, open=False)
            await ports.drain(port)
            assert written == b"x" * 100_000


async def test_drain_waits_for_what_qemu_held_back() -> None:
    """QEMU tells of the closing at once, and hands on what it had no room for only then."""
    seen = bytearray()
    slowly = trio.Event()

    async def receive(data: bytes) -> None:
        await slowly.wait()
        seen.extend(data)

    port = Port("stdout", receive)
    with trio.fail_after(BOUND):
        async with ports_of(port) as (ports, qemu):
            ((name, _),) = plugged(qemu)
            await qemu.tell("VSERPORT_CHANGE", id=name, open=True)
            await port.opened.wait()
            sock = qemu.fds[name]
            await sock.send(b"a" * 1000)
            await qemu.tell("VSERPORT_CHANGE", id=name, open=False)
            done: list[int] = []

            async def drain() -> None:
                await ports.drain(port)
                done.append(len(seen))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                while qemu.names().count("query-name") < 2:
                    await trio.lowlevel.checkpoint()
                assert not done
                await sock.send(b"b" * 1000)
                slowly.set()
            assert done == [2000]


async def test_there_is_room_again_once_a_port_is_out() -> None:
    with trio.fail_after(BOUND):
        async with ports_of(Port("agent"), spare=1) as (ports, qemu):
            first = Port("")
            assert await ports.add([first]) == [2]
            with pytest.raises(BusyError):
                await ports.add([Port("")])
            ports.remove(first)
            assert first.closed.is_set()
            while "chardev-remove" not in qemu.names():
                await trio.lowlevel.checkpoint()
            second, again = Port(""), None
            while again is None:
                await trio.lowlevel.checkpoint()
                try:
                    again = await ports.add([second])
                except BusyError:
                    continue
            assert again == [3]
            # An event about the port that was there before is not taken for this one.
            (_, (old, _), (new, _)) = plugged(qemu)
            assert old != new
            await qemu.tell("VSERPORT_CHANGE", id=old, open=True)
            await qemu.tell("VSERPORT_CHANGE", id=new, open=True)
            await second.opened.wait()


async def test_a_number_rests_until_the_guest_has_opened_a_later_port() -> None:
    """A guest that stood still meanwhile opened the port that had been there before."""
    with trio.fail_after(BOUND):
        async with ports_of(Port("agent"), spare=MAX_PORTS - FIRST_NUMBER - 1) as (ports, qemu):
            first = [Port("") for _ in range(MAX_PORTS - FIRST_NUMBER - 1)]
            assert await ports.add(first) == list(range(2, MAX_PORTS))
            for port in first:
                ports.remove(port)
            while qemu.names().count("chardev-remove") < len(first):
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()  # the last answer is heard, too
            # Nothing will tell that these have rested.
            assert await ports.add([Port("")]) == [2]
            async with trio.open_nursery() as nursery:
                third = Port("")
                added = trio.Event()

                async def add() -> None:
                    assert await ports.add([third]) == [3]
                    added.set()

                nursery.start_soon(add)
                await trio.testing.wait_all_tasks_blocked()
                assert not added.is_set()
                await qemu.tell("VSERPORT_CHANGE", id=plugged(qemu)[-1][0], open=True)
                await added.wait()


async def test_a_resumed_guest_has_the_ports_that_it_had_and_then_the_new_ones() -> None:
    agent, more = Port("agent"), Port("more")
    old = [(1, "agent"), (5, ""), (7, "session")]
    with trio.fail_after(BOUND):
        async with ports_of(agent, more, spare=10, old=old) as (ports, qemu):
            await ports.inherited.wait()
            assert [(given["nr"], given.get("name", "")) for given in given_ports(qemu)] == old
            async with ports.unchanged() as had:
                assert had == old
            await trio.testing.wait_all_tasks_blocked()
            assert len(plugged(qemu)) == 3  # else QEMU would not load the state
            ports.loaded.set()
            while len(plugged(qemu)) < 4:
                await trio.lowlevel.checkpoint()
            assert plugged(qemu)[-1][1] == 2
            names = [name for name, _ in plugged(qemu)]
            await qemu.tell("VSERPORT_CHANGE", id=names[0], open=True)
            await agent.opened.wait()
            # What nobody has here is read, and goes once the guest closes it.
            await qemu.tell("VSERPORT_CHANGE", id=names[2], open=True)
            await qemu.fds[names[2]].send(b"x" * 1_000_000)
            await qemu.tell("VSERPORT_CHANGE", id=names[2], open=False)
            while ("device_del", {"id": names[2]}) not in qemu.asked:
                await trio.lowlevel.checkpoint()


async def test_a_state_with_all_ports_leaves_room_for_none() -> None:
    old = [(1, "agent"), *((number, "") for number in range(2, MAX_PORTS))]
    with trio.fail_after(BOUND):
        async with ports_of(Port("agent"), spare=20, old=old) as (ports, _):
            await ports.inherited.wait()
            with pytest.raises(BusyError):
                await ports.add([Port("")])


def given_ports(qemu: Qemu) -> list[dict[str, Any]]:
    return [given for name, given in qemu.asked if name == "device_add"]


async def test_no_port_comes_or_goes_while_a_guest_is_captured() -> None:
    with trio.fail_after(BOUND):
        async with ports_of(Port("agent"), spare=3) as (ports, qemu):
            port = Port("")
            await ports.add([port])
            async with trio.open_nursery() as nursery:
                async with ports.unchanged() as had:
                    assert had == [(1, "agent"), (2, "")]
                    ports.remove(port)
                    nursery.start_soon(ports.add, [Port("")])
                    await trio.testing.wait_all_tasks_blocked()
                    assert "device_del" not in qemu.names()
                    assert len(plugged(qemu)) == 2
            assert len(plugged(qemu)) == 3


async def test_descriptors_are_closed_with_the_guest() -> None:
    before = open_descriptors()
    async with ports_of(Port("a"), Port("b")) as (_, qemu):
        assert len(open_descriptors() - before) >= 6  # the monitor's two, and two of each port
        assert len(qemu.fds) == 2
    assert open_descriptors() <= before


async def test_ports_of_before_that_qemu_refuses_are_an_error(autojump_clock: MockClock) -> None:
    """A resume waited for them for ever."""
    async with connected() as (qmp, qemu):
        qemu.refused = {"device_add"}
        ports = QemuPorts(qmp, [], old=[(31, "agent")])
        with trio.fail_after(BOUND), pytest.raises(MismatchError, match="no such device"):
            with plain_errors():
                await ports.serve()
    assert autojump_clock.current_time() < BOUND
