"""Which machine gets which disk."""

from __future__ import annotations

import errno
import struct
from contextlib import AsyncExitStack

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import BusyError, StorageError
from p2pcloop.image.api import Missing
from p2pcloop.protocol.nbd_export import Export
from p2pcloopd.block.nbd_server import serve_exports
from p2pcloopd.netboot.machines import MAX_PAYLOAD, Machines, disk_name, parse_export
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


async def test_a_machine_gets_the_image_read_only(machines: Machines) -> None:
    assert machines.find(name()) == Export(1 << 20, read_only=True, max_payload=MAX_PAYLOAD)
    async with machines.attach(name(), lambda: None) as backend:
        assert backend is machines.backend
        assert machines.count == 1
    assert machines.count == 0


async def test_a_second_machine_with_one_address_is_refused_while_the_first_is_there(
    machines: Machines, said: list[str]
) -> None:
    async with machines.attach(name(0), lambda: None):
        refusal = machines.find(name(1))
        assert isinstance(refusal, str)
        assert MAC in refusal and "turn the other one off" in refusal
        with pytest.raises(BusyError):
            async with machines.attach(name(1), lambda: None):
                pass
        assert machines.count == 1
        assert any("two machines" in line for line in said)
        assert not isinstance(machines.find(name(1, "52:54:00:77:00:02")), str)
    assert not isinstance(machines.find(name(1)), str)


async def test_a_machine_that_lost_its_connection_takes_the_place_of_the_old_one(
    machines: Machines, said: list[str]
) -> None:
    left = []
    async with AsyncExitStack() as stack:
        async with machines.attach(name(), lambda: left.append("first")):
            again = machines.attach(name(again="/again"), lambda: None)
            await stack.enter_async_context(again)
            assert left == ["first"]
        # The end of the old connection takes nothing from the new one.
        assert machines.count == 1
        assert said[-1] == f"{MAC} has its disk again"
    assert machines.count == 0


def test_a_machine_of_another_version_reads_none_of_this_one(machines: Machines) -> None:
    refusal = machines.find(name(image="fedcba9876543210", again="/again"))
    assert isinstance(refusal, str)
    assert "start the machine again" in refusal


@pytest.mark.parametrize("again", ["", "/again"])
def test_a_machine_whose_changes_were_kept_gets_no_bare_image(said: list[str], again: str) -> None:
    bare = Machines(IMAGE, Backend(), said.append)
    keeping = Machines(disk_name(IMAGE, keeps=True), Backend(), said.append, Kept())
    kept_name = name(image=IMAGE + "-keep", again=again)
    assert "serve the image with --keep" in str(bare.find(kept_name))
    assert "without --keep" in str(keeping.find(name(again=again)))
    assert keeping.find(kept_name) == Export(1 << 20, read_only=False, max_payload=MAX_PAYLOAD)


class Kept:
    """Changes that a full disk refuses, until there is room."""

    def __init__(self) -> None:
        self.full = False
        self.seen: list[str] = []

    def refusal(self, mac: str, boot: str, *, again: bool) -> str | None:
        del mac, boot, again
        return None

    async def backend(self, mac: str, boot: str) -> Backend:
        del mac, boot
        await trio.lowlevel.checkpoint()
        if self.full:
            raise StorageError("no room is left on the node's disk", errno=errno.ENOSPC)
        self.seen.append("open")
        return Backend()

    def lost(self, mac: str, boot: str) -> None:
        del mac, boot
        self.seen.append("lost")

    async def close(self, mac: str) -> None:
        del mac
        self.seen.append("close")

    async def close_all(self) -> None:
        """Nothing is open."""


async def test_a_machine_is_told_why_its_changes_cannot_be_opened(said: list[str]) -> None:
    """It is told before it takes the connection for its disk."""
    kept = Kept()
    machines = Machines(disk_name(IMAGE, keeps=True), Backend(), said.append, kept)
    kept.full = True
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_exports, machines, [listener])
        nursery.start_soon(machines.close_left)
        kind, text, refused = await ask(listener, name(image=IMAGE + "-keep"))
        assert kind == 0x80000006
        assert b"no room is left" in text
        assert not any(line.endswith("has gone") for line in said)
        kept.full = False
        kind, _, stream = await ask(listener, name(image=IMAGE + "-keep"))
        assert kind == 1
        assert kept.seen[-1] == "open"  # before the answer
        # It vanishes, and comes back, and leaves in order.
        await stream.aclose()
        await until(lambda: kept.seen[-2:] == ["lost", "close"])
        kind, _, stream = await ask(listener, name(image=IMAGE + "-keep", again="/again"))
        await stream.send_all(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        await until(lambda: kept.seen[-2:] == ["open", "close"])
        await refused.aclose()
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_second_machine_that_asks_on_and_on_is_told_of_once(
    machines: Machines, said: list[str]
) -> None:
    async with machines.attach(name(0), lambda: None):
        for _ in range(3):
            machines.find(name(1))
    assert sum("two machines" in line for line in said) == 1


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
