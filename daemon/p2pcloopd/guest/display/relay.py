"""Connections between a sandboxed X server and this machine: to the user's display, and of viewers.

The sandbox has no network and sees no socket of the host but those that are served here. Bytes go
both ways. The display's answers may carry descriptors: memory that it shares with its client
(MIT-SHM), which makes the window quick. Else none are carried.
"""

from __future__ import annotations

import array
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from p2pcloopd.accepting import accept

_CHUNK = 1 << 16
Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

_MAX_CLIENTS = 16
"""A server has one or two connections. One that a guest has taken over may open more."""

HANDSHAKE_SECONDS = 60
"""Until a client is past its handshake. Its user may type a password meanwhile."""

_MAX_FDS = 16
_FD_ROOM = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)

_MAX_SEEN = 1 << 16
"""Bytes of each side that are looked at; up to a handshake's end they send some hundred."""

IsPast = Callable[[bytes, bytes], bool]
"""Whether a client is past its handshake, by what it has sent, and what the server has."""


async def relay(
    listener: socket.socket,
    address: Address,
    *,
    with_fds: bool = False,
    is_past_handshake: IsPast | None = None,
) -> None:
    """Connect each client of `listener` to a server, until cancelled.

    Args:
        listener: it stays open at the end.
        address: of the server.
        with_fds: carry descriptors to the client, too, where both sockets are Unix ones.
        is_past_handshake: a client for which it is not true in time makes room for others.
    """
    listener.setblocking(False)
    served = trio.socket.from_stdlib_socket(listener)
    room = trio.Semaphore(_MAX_CLIENTS)

    async def serve(client: trio.socket.SocketType) -> None:
        try:
            await _join(client, address, with_fds, is_past_handshake)
        finally:
            room.release()

    async with trio.open_nursery() as nursery:
        while True:
            await room.acquire()
            client = await accept(served)
            nursery.start_soon(serve, client)


async def _join(
    client: trio.socket.SocketType,
    address: Address,
    with_fds: bool,
    is_past_handshake: IsPast | None,
) -> None:
    local = isinstance(address, str)
    family = trio.socket.AF_UNIX if local else trio.socket.AF_INET
    with client, trio.socket.socket(family) as server:
        # Once one of them has gone, the other one sees an end.
        with suppress(OSError):
            await server.connect(address)
            async with trio.open_nursery() as nursery:
                joined = nursery.cancel_scope
                handshake = _Handshake(is_past_handshake, joined)
                nursery.start_soon(_carry, client, server, joined, handshake.note_client)
                nursery.start_soon(
                    partial(_carry, with_fds=local and with_fds),
                    *(server, client, joined, handshake.note_server),
                )


class _Handshake:
    """Ends a connection whose client is not past its handshake in time."""

    def __init__(self, is_past: IsPast | None, connection: trio.CancelScope) -> None:
        self._is_past = is_past
        self._connection = connection
        self._client, self._server = bytearray(), bytearray()
        if is_past is not None:
            connection.deadline = trio.current_time() + HANDSHAKE_SECONDS

    def note_client(self, data: bytes) -> None:
        self._note(self._client, data)

    def note_server(self, data: bytes) -> None:
        self._note(self._server, data)

    def _note(self, seen: bytearray, data: bytes) -> None:
        if self._is_past is None:
            return
        seen += data[: _MAX_SEEN - len(seen)]
        if self._is_past(bytes(self._client), bytes(self._server)):
            self._is_past = None
            self._connection.deadline = math.inf


async def _carry(
    source: trio.socket.SocketType,
    target: trio.socket.SocketType,
    joined: trio.CancelScope,
    note: Callable[[bytes], None],
    *,
    with_fds: bool = False,
) -> None:
    """Carry bytes until the source hangs up, and cancel `joined` then; `note` is told them. Where
    the target takes no more, what it said before is carried the other way, to its end."""
    with suppress(OSError):
        while True:
            room = _FD_ROOM if with_fds else 0
            data, messages, _, _ = await source.recvmsg(_CHUNK, room, socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            note(data)
            fds = array.array("i")
            for _, _, message in messages:
                fds.frombytes(message[: len(message) - len(message) % fds.itemsize])
            try:
                await _send(target, data, fds)
            except (BrokenPipeError, ConnectionResetError):
                return
    joined.cancel()


async def _send(target: trio.socket.SocketType, data: bytes, fds: array.array[int]) -> None:
    """Send bytes, and descriptors with the first of them; the descriptors are closed here."""
    sent = 0
    try:
        if fds:
            sent = await target.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    finally:
        for fd in fds:
            os.close(fd)
    while sent < len(data):
        sent += await target.send(data[sent:])
