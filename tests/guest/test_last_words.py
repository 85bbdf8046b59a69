"""A server may answer and hang up while its client still sends: all of its answer is carried."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloopd.guest.display import relay as relaying
from p2pcloopd.guest.display import web
from p2pcloopd.guest.display.relay import relay
from p2pcloopd.guest.display.web import link, serve_web
from p2pcloopd.guest.network import lan_ports
from p2pcloopd.guest.network.lan_ports import LanPorts
from tests.support.waiting import BOUND

BUFFER = 1 << 12
ANSWER = bytes(48 << 10) + b"end"
"""More than BUFFER lets through to a client that does not read, and less than a connection takes
that is not read."""

AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER: the end of a connection is a reset."""


class Carried(NamedTuple):
    """Two ends of a connection that a LAN carries, and what runs until its guest has ended."""

    client: trio.SocketStream
    guest: socket.socket
    lead: trio.CancelScope


async def fill(sock: trio.socket.SocketType) -> int:
    """Send until no more is taken; return how much was."""
    size, is_full = 0, False
    while True:
        try:
            size += os.write(sock.fileno(), bytes(BUFFER))
            is_full = False
        except BlockingIOError:
            if is_full:
                return size
            is_full = True
            await wait_all_tasks_blocked()


def slow_client(listener: socket.socket) -> trio.SocketStream:
    """A client that can hold little, of a server that can, too."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    client.connect(listener.getsockname())
    client.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(client))


async def answer_and_close(listener: socket.socket, *, resets: bool = False) -> None:
    """Be a server that does not wait for what its client sends.

    Args:
        resets: it says so at once, not only once the client sends more.
    """
    listener.setblocking(False)
    await trio.lowlevel.wait_readable(listener)
    with listener.accept()[0] as connection:
        connection.sendall(ANSWER)
        await wait_all_tasks_blocked()
        if resets:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    await wait_all_tasks_blocked()


async def all_of(stream: trio.SocketStream) -> bytes:
    """What comes until the end."""
    data = b""
    async for piece in stream:
        data += piece
    return data


async def all_before_a_reset(stream: trio.SocketStream) -> bytes:
    """What comes until the connection fails."""
    data = bytearray()
    with pytest.raises(trio.BrokenResourceError):
        async for piece in stream:
            data += piece
    return bytes(data)


async def test_a_viewer_gets_all_that_its_server_said(tmp_path: Path) -> None:
    inner, outer = (str(tmp_path / name) for name in ("inner", "outer"))
    with (
        trio.socket.socket(socket.AF_UNIX) as display,
        socket.socket(socket.AF_UNIX) as listener,
        trio.socket.socket(socket.AF_UNIX) as viewer,
        trio.fail_after(BOUND),
    ):
        await display.bind(outer)
        display.listen()
        listener.bind(inner)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, listener, outer)
            await viewer.connect(inner)
            server, _ = await display.accept()
            size = await fill(server)
            server.close()
            await viewer.send(b"hello")
            await wait_all_tasks_blocked()
            assert len(await all_of(trio.SocketStream(viewer))) == size
            nursery.cancel_scope.cancel()


async def test_a_display_that_cannot_be_told_more_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still there, but the system refuses: one way alone would be of no use."""

    async def refuse(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    monkeypatch.setattr(relaying, "_send", refuse)
    inner, outer = (str(tmp_path / name) for name in ("inner", "outer"))
    with (
        trio.socket.socket(socket.AF_UNIX) as display,
        socket.socket(socket.AF_UNIX) as listener,
        trio.socket.socket(socket.AF_UNIX) as program,
        trio.fail_after(BOUND),
    ):
        await display.bind(outer)
        display.listen()
        listener.bind(inner)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, listener, outer)
            await program.connect(inner)
            server, _ = await display.accept()
            with server:
                await program.send(b"hello")
                assert await server.recv(1) == b""
                assert await program.recv(1) == b""
            nursery.cancel_scope.cancel()


async def test_a_client_of_a_lans_guest_gets_all_that_the_guest_said() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as guest,
        socket.create_server(("127.0.0.1", 0)) as port,
        trio.fail_after(BOUND),
    ):
        address, number = guest.getsockname()
        async with slow_client(port) as client, trio.open_nursery() as nursery:
            nursery.start_soon(LanPorts(socket.socket).lead, [port.dup()], address, [number])
            await answer_and_close(guest)
            for _ in range(2):  # the first one is answered by a reset
                await client.send_all(b"more")
                await wait_all_tasks_blocked()
            assert await all_of(client) == ANSWER
            nursery.cancel_scope.cancel()


async def test_an_answer_that_a_lans_guest_breaks_off_does_not_look_whole() -> None:
    """What it said before is carried. Then the client sees that the connection failed."""
    with (
        socket.create_server(("127.0.0.1", 0)) as guest,
        socket.create_server(("127.0.0.1", 0)) as port,
        trio.fail_after(BOUND),
    ):
        address, number = guest.getsockname()
        async with slow_client(port) as client, trio.open_nursery() as nursery:
            nursery.start_soon(LanPorts(socket.socket).lead, [port.dup()], address, [number])
            await answer_and_close(guest, resets=True)
            await client.send_all(b"more")
            await wait_all_tasks_blocked()
            assert await all_before_a_reset(client) == ANSWER
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def carried(*, patient: bool = False) -> AsyncIterator[Carried]:
    """A connection that a LAN carries to a guest, which has told its end that it is there.

    Args:
        patient: the guest can hold little, too.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.1", 0)) as port,
        trio.fail_after(BOUND),
    ):
        if patient:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        address, number = listener.getsockname()
        leading = trio.CancelScope()

        async def lead() -> None:
            with leading:
                await LanPorts(socket.socket).lead([port.dup()], address, [number])

        async with slow_client(port) as client, trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            listener.setblocking(False)
            await trio.lowlevel.wait_readable(listener)
            with listener.accept()[0] as guest:
                yield Carried(client, guest, leading)
            leading.cancel()


async def test_half_an_answer_of_a_lans_guest_that_ends_does_not_look_whole() -> None:
    async with carried() as (client, guest, lead):
        guest.sendall(ANSWER[: len(ANSWER) // 2])
        assert await client.receive_some(1)
        lead.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await all_of(client)


async def test_an_answer_that_was_carried_before_a_lans_guest_ends_is_whole() -> None:
    async with carried() as (client, guest, lead):
        guest.sendall(b"all")
        guest.shutdown(socket.SHUT_WR)
        await wait_all_tasks_blocked()
        lead.cancel()
        assert await all_of(client) == b"all"


async def test_a_lans_guest_that_fails_while_it_is_sent_to_has_not_said_all() -> None:
    """Its socket tells that once: to the way there, not to the way back. Which of them comes first
    is trio's choice."""
    for _ in range(20):
        async with carried() as (client, guest, _):
            await wait_all_tasks_blocked()
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            guest.close()
            os.write(client.socket.fileno(), b"more")
            with pytest.raises(trio.BrokenResourceError):
                await all_of(client)


async def test_a_lans_guest_gets_all_that_a_client_said_that_failed() -> None:
    """Also where it has said all before it takes that."""
    async with carried(patient=True) as (client, guest, _):
        await client.send_all(ANSWER)
        await wait_all_tasks_blocked()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        await client.aclose()
        await wait_all_tasks_blocked()
        guest.shutdown(socket.SHUT_WR)
        await wait_all_tasks_blocked()
        guest.setblocking(False)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(guest)) as reader:
            assert await all_before_a_reset(reader) == ANSWER


async def test_a_client_gets_all_that_a_lans_guest_said_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = lan_ports._send

    async def refuse(target: trio.socket.SocketType, data: bytes) -> None:
        if data == b"more":
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        await send(target, data)

    monkeypatch.setattr(lan_ports, "_send", refuse)
    async with carried() as (client, guest, _):
        guest.sendall(ANSWER)
        await wait_all_tasks_blocked()
        await client.send_all(b"more")
        await wait_all_tasks_blocked()
        guest.shutdown(socket.SHUT_WR)  # a socket that has failed has an end, too
        assert await all_before_a_reset(client) == ANSWER


async def test_a_client_that_takes_nothing_does_not_hold_its_place(mock_clock: MockClock) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as guest,
        socket.create_server(("127.0.0.1", 0)) as port,
    ):
        address, number = guest.getsockname()
        ports = LanPorts(socket.socket)
        places = ports._room.value
        async with slow_client(port) as client, trio.open_nursery() as nursery:
            nursery.start_soon(ports.lead, [port.dup()], address, [number])
            await answer_and_close(guest, resets=True)
            await client.send_all(b"more")
            await wait_all_tasks_blocked()
            assert ports._room.value == places - 2  # one waits for the next client
            mock_clock.jump(lan_ports._TAKE_SECONDS)
            await wait_all_tasks_blocked()
            assert ports._room.value == places - 1
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def answered_browser() -> AsyncIterator[trio.SocketStream]:
    """A browser that has read nothing of what its server, which has gone, said."""
    with (
        socket.create_server(("127.0.0.1", 0)) as vnc,
        socket.create_server(("127.0.0.1", 0)) as pages,
    ):
        parts = urlsplit(link(pages.getsockname(), "token", "secret"))
        ask = (
            f"GET /token/rfb HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        async with slow_client(pages) as browser, trio.open_nursery() as nursery:
            nursery.start_soon(serve_web, pages, "token", vnc.getsockname())
            await browser.send_all(ask.encode())
            await answer_and_close(vnc, resets=True)
            await browser.send_all(b"\x82\x81" + bytes(4) + b"x")  # a frame of one byte
            await wait_all_tasks_blocked()
            yield browser
            nursery.cancel_scope.cancel()


@pytest.mark.interop
async def test_a_browser_gets_all_that_its_server_said() -> None:
    with trio.fail_after(BOUND):
        async with answered_browser() as browser:
            assert b"end" in await all_of(browser)


@pytest.mark.interop
async def test_a_browser_that_takes_nothing_is_not_waited_for(mock_clock: MockClock) -> None:
    async with answered_browser() as browser:
        mock_clock.jump(web._TAKE_SECONDS)
        await wait_all_tasks_blocked()
        assert b"end" not in await all_of(browser)
