"""Ports of this machine that lead to a guest of a LAN: connections, carried by the LAN's owner.

A guest's process opens the ports and hands them over when it joins. The owner makes the connections
to the guest inside the LAN's namespace, so the guest sees them come from the LAN's gateway.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from p2pcloop.errors import GuestError
from p2pcloopd.accepting import accept

_MAX_CONNECTIONS = 128
"""Of all guests of a LAN. Each has two descriptors."""

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""struct linger: a close tells the other end that the connection has failed."""

_TCP_CLOSE = 7  # linux/tcp_states.h

_TAKE_SECONDS = 30.0
"""Until one end has taken what the other one said last."""
_LOOK_SECONDS = 0.05
"""Between looks at whether it has."""


@dataclass(frozen=True, slots=True)
class LanPorts:
    """Carries connections to the guests of a LAN.

    Attributes:
        dial: makes a TCP socket in the LAN's namespace.
    """

    dial: Callable[[], socket.socket]
    _room: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(_MAX_CONNECTIONS))

    async def lead(
        self, listeners: Sequence[socket.socket], address: str, ports: Sequence[int]
    ) -> None:
        """Carry all connections of sockets that listen to ports of a guest, until cancelled.

        Args:
            listeners: closed at the end.
            address: the guest's, IPv4.
            ports: the guest's, one for each listener.
        """
        async with trio.open_nursery() as nursery:
            for listener, port in zip(listeners, ports, strict=True):
                nursery.start_soon(self._accept, listener, (address, port))

    async def _accept(self, listener: socket.socket, target: tuple[str, int]) -> None:
        listener.setblocking(False)
        with trio.socket.from_stdlib_socket(listener) as served:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._room.acquire()
                    try:
                        client = await accept(served)
                    except BaseException:
                        self._room.release()
                        raise
                    nursery.start_soon(self._serve, client, target)

    async def _serve(self, client: trio.socket.SocketType, target: tuple[str, int]) -> None:
        try:
            with client:
                await self._join(client, target)
        finally:
            self._room.release()

    async def _join(self, client: trio.socket.SocketType, target: tuple[str, int]) -> None:
        try:
            made = self.dial()
            made.setblocking(False)
            guest = trio.socket.from_stdlib_socket(made)
        except (GuestError, OSError):  # no descriptor is free
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        with guest:
            try:
                await guest.connect(target)
            except OSError:  # the guest refuses
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            async with trio.open_nursery() as nursery:
                joined = _Joined(nursery.cancel_scope)
                nursery.start_soon(joined.carry, client, guest)
                nursery.start_soon(joined.carry, guest, client)
            if joined.has_failed:
                for end in (client, guest):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


@dataclass(slots=True)
class _Joined:
    """Two connections that are one to their ends.

    Attributes:
        scope: of both ways.
        has_failed: one of them has failed: neither end may see an orderly end.
    """

    scope: trio.CancelScope
    has_failed: bool = False

    async def carry(self, source: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
        """Carry bytes to their end, which the target then sees, too. Where the target takes no
        more, what it said before is carried the other way, to its end. Where one of them fails,
        both ways end once the target has taken what was said before, or has not in time."""
        try:
            while data := await source.recv(_CHUNK):
                try:
                    await _send(target, data)
                except BrokenPipeError:  # it has said all
                    return
                except ConnectionResetError:
                    # Its socket has told this once. Behind what it said before there is an end now
                    # that looks like any other.
                    self._fail()
                    return
        except OSError:
            self._fail()
        if self.has_failed:
            await _all_taken(target)
            self.scope.cancel()
            return
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _fail(self) -> None:
        self.has_failed = True
        self.scope.deadline = trio.current_time() + _TAKE_SECONDS


async def _send(target: trio.socket.SocketType, data: bytes) -> None:
    sent = 0
    while sent < len(data):
        sent += await target.send(data[sent:])


async def _all_taken(target: trio.socket.SocketType) -> None:
    """Return when the system at the other end has all that was sent: a reset discards the rest."""
    while _is_open(target) and _unsent(target):  # noqa: ASYNC110  no event tells of it
        await trio.sleep(_LOOK_SECONDS)


def _unsent(target: trio.socket.SocketType) -> int:
    """How many bytes the other end has not confirmed."""
    answer = fcntl.ioctl(target.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def _is_open(target: trio.socket.SocketType) -> bool:
    state = target.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != _TCP_CLOSE
