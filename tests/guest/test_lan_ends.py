"""What a guest is told by an owner of a LAN that ends, or that can make no cards any more."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.errors import GuestError
from p2pcloop.protocol.control import ControlReceiver, Failure, Request, encode
from p2pcloop.store.home import Home
from p2pcloopd.guest.network import lan, lan_owner
from p2pcloopd.guest.network.lan_plan import choose_network
from p2pcloopd.guest.network.namespace_taps import TapMaker
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from tests.support.waiting import BOUND


@pytest.mark.parametrize(
    "said",
    [b"", encode(Failure(0, GuestError("no LAN", hint="do that")))],
    ids=["nothing", "failure"],
)
def test_an_owner_may_answer_and_close_before_it_is_asked(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, connect = Home.at(tmp_path), lan._connected
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(lan.address_of(home, "lan"))
        owner.listen()

        def connected(home: Home, name: str) -> socket.socket | None:
            sock = connect(home, name)
            with owner.accept()[0] as connection:
                connection.sendall(said)
            return sock

        monkeypatch.setattr(lan, "_connected", connected)
        with pytest.raises(GuestError) as caught, lan.joined(home, "lan", "g1"):
            pass
    if said:
        assert (str(caught.value), caught.value.hint) == ("no LAN", "do that")
    else:
        assert "does not begin, or ends" in str(caught.value)


async def test_a_guest_that_has_gone_keeps_the_answer_from_no_other(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    place = str(tmp_path / "owner")
    with trio.socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as guest:
        await owner.bind(place)
        owner.listen()
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(place)
        guest.settimeout(BOUND)
        guest.connect(place)
        await lan_owner._turn_away(owner, GuestError("no LAN"))
        assert isinstance(ControlReceiver().receive(guest.recv(1 << 16))[0], Failure)
    assert autojump_clock.current_time() == lan_owner._FAREWELL_SECONDS


class _Killed(SandboxedProcess):
    """A sandbox whose process was killed."""

    def __init__(self) -> None:
        self.init_pid = 1

    async def wait(self) -> int:
        return 137


class _Maker(TapMaker):
    """Makes nothing."""

    def __init__(self) -> None:
        pass

    def enter(self, pid: int) -> None:
        pass

    def uplink(self) -> tuple[int, socket.socket]:
        return -1, socket.socket()


async def test_services_that_are_killed_while_they_start_are_named() -> None:
    control, services = trio.socket.socketpair()
    native = NativeOutput()
    stream = trio.SocketStream(control)
    owned = lan_owner._Lan(choose_network([]), _Maker(), stream, _Killed(), native)
    try:
        with services:
            await services.send(b"bridge\n")
        os.write(native.write_end, b"no memory\n")
        native.close_write_end()
        async with stream:
            with pytest.raises(GuestError, match=r"do not start \(exit status 137\): no memory"):
                await owned.set_up()
    finally:
        owned._frames.close()
        native.close()


async def test_a_lan_whose_process_for_cards_was_killed_says_so() -> None:
    maker = TapMaker.__new__(TapMaker)
    maker._ours, killed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    killed.close()
    guest, ours = trio.socket.socketpair()
    control, services = trio.socket.socketpair()
    native = NativeOutput()
    try:
        with maker._ours, guest, ours, services, trio.fail_after(BOUND):
            process = SandboxedProcess.__new__(SandboxedProcess)
            stream = trio.SocketStream(control)
            owned = lan_owner._Lan(choose_network([]), maker, stream, process, native)
            await guest.send(encode(Request(0, "join", {"guest": "g1", "ports": []})))
            await owned._attend(ours)
            [answer] = ControlReceiver().receive(await guest.recv(1 << 16))
            assert isinstance(answer, Failure)
            assert "makes the LAN's network cards has ended" in str(answer.error)
            await stream.aclose()
    finally:
        native.close()
