"""Which machine gets which disk."""

from __future__ import annotations

import struct
from contextlib import ExitStack

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.image.api import Missing
from p2pcloop.protocol.nbd_export import Export
from p2pcloop.protocol.nbd_wire import RemoteProtocolError
from p2pcloopd.block.nbd_server import serve_exports
from p2pcloopd.netboot.machines import Machines, parse_export
from tests.support.memory_device import MemoryDevice
from tests.support.nbd_client import NbdClient
from tests.support.waiting import until

IMAGE = "0123456789abcdef"
MAC = "52:54:00:77:00:01"
BOOTS = ["6e4cf3b4-0e0b-4b0e-8d0a-000000000001", "6e4cf3b4-0e0b-4b0e-8d0a-000000000002"]


class Backend:
    """A device whose bytes are all here."""

    def __init__(self) -> None:
        self.device = MemoryDevice(bytes(1 << 20), read_only=True)

    async def supply(self, missing: Missing) -> None:
        raise AssertionError(missing)

    async def flush(self) -> None:
        """Nothing is to be made durable."""


def name(boot: int = 0, mac: str = MAC, image: str = IMAGE, again: str = "") -> bytes:
    return f"{image}/{mac}/{BOOTS[boot]}{again}".encode()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def machines(said: list[str]) -> Machines:
    return Machines(IMAGE, Backend(), said.append)


def test_a_machine_gets_the_image_read_only(machines: Machines) -> None:
    assert machines.find(name()) == Export(1 << 20, read_only=True)
    with machines.attach(name(), lambda: None) as backend:
        assert backend is machines.backend
        assert machines.count == 1
    assert machines.count == 0


def test_a_second_machine_with_one_address_is_refused_while_the_first_is_there(
    machines: Machines, said: list[str]
) -> None:
    with machines.attach(name(0), lambda: None):
        refusal = machines.find(name(1))
        assert isinstance(refusal, str)
        assert MAC in refusal and "turn the other one off" in refusal
        with pytest.raises(RemoteProtocolError), machines.attach(name(1), lambda: None):
            pass
        assert machines.count == 1
        assert any("two machines" in line for line in said)
        assert not isinstance(machines.find(name(1, "52:54:00:77:00:02")), str)
    assert not isinstance(machines.find(name(1)), str)


def test_a_machine_that_lost_its_connection_takes_the_place_of_the_old_one(
    machines: Machines, said: list[str]
) -> None:
    left = []
    with ExitStack() as stack:
        with machines.attach(name(), lambda: left.append("first")):
            stack.enter_context(machines.attach(name(again="/again"), lambda: None))
            assert left == ["first"]
        # The end of the old connection takes nothing from the new one.
        assert machines.count == 1
        assert said[-1] == f"{MAC} has its disk again"
    assert machines.count == 0


def test_a_machine_of_another_version_reads_none_of_this_one(machines: Machines) -> None:
    refusal = machines.find(name(image="fedcba9876543210", again="/again"))
    assert isinstance(refusal, str)
    assert "start the machine again" in refusal


@pytest.mark.parametrize(
    "odd", [b"", b"debian", name() + b"/", name(mac="52:54:00:77:00"), b"\xff" + name()]
)
def test_other_clients_get_nothing(machines: Machines, odd: bytes) -> None:
    assert isinstance(machines.find(odd), str)


@given(st.binary(max_size=120))
def test_any_name_is_read(data: bytes) -> None:
    parse_export(data)


async def ask(listener: trio.SocketListener, name: bytes) -> tuple[int, bytes, trio.SocketStream]:
    """Ask an NBD server for an export: the kind of its last answer, and its text."""
    stream = trio.SocketStream(trio.socket.socket(trio.socket.AF_INET))
    await stream.socket.connect(listener.socket.getsockname())
    client = NbdClient(stream)
    await client.receive(18)
    data = struct.pack(">I", len(name)) + name + bytes(2)
    await stream.send_all(
        bytes.fromhex("00000003") + b"IHAVEOPT" + struct.pack(">II", 7, len(data))
    )
    await stream.send_all(data)
    while True:
        _, _, kind, size = struct.unpack(">QIII", await client.receive(20))
        text = await client.receive(size)
        if kind != 3:
            return kind, text, stream


async def test_two_machines_and_a_copy_of_one_ask_over_the_network(machines: Machines) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_exports, machines, [listener])
        kind, _, first = await ask(listener, name(0))
        assert kind == 1
        await until(lambda: machines.count == 1)
        kind, _, second = await ask(listener, name(0, "52:54:00:77:00:02"))
        assert kind == 1
        kind, text, copy = await ask(listener, name(1))
        assert kind == 0x80000006
        assert b"turn the other one off" in text
        # It is the same machine that comes back: its old connection is ended.
        kind, _, again = await ask(listener, name(0, again="/again"))
        assert kind == 1
        assert await first.receive_some(1) == b""
        await again.aclose()
        await until(lambda: machines.count == 1)
        kind, _, later = await ask(listener, name(1))
        assert kind == 1
        for stream in (first, second, copy, later):
            await stream.aclose()
        nursery.cancel_scope.cancel()
