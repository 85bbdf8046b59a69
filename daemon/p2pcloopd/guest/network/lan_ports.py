"""Ports of this machine that lead to a guest of a LAN: connections, carried by the LAN's owner.

A guest's process opens the ports and hands them over when it joins. The owner makes the connections
to the guest inside the LAN's namespace, so the guest sees them come from the LAN's gateway.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from p2pcloop.errors import GuestError
from p2pcloopd.accepting import accept

_MAX_CONNECTIONS = 128
"""Of all guests of a LAN. Each has two descriptors."""

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""struct linger: a close tells the other end that the connection has failed."""


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
                carry = partial(_carry, scope=nursery.cancel_scope)
                nursery.start_soon(carry, client, guest)
                nursery.start_soon(carry, guest, client)


async def _carry(
    source: trio.socket.SocketType, target: trio.socket.SocketType, scope: trio.CancelScope
) -> None:
    """Carry bytes to their end, which the target then sees, too. Where the source fails, so does
    the target. Where the target takes no more, what it said before is carried the other way, to its
    end."""
    try:
        while data := await source.recv(_CHUNK):
            if not await _is_sent(target, data):
                return
    except OSError:
        with suppress(OSError):
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        scope.cancel()
        return
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _is_sent(target: trio.socket.SocketType, data: bytes) -> bool:
    """Send all; False if the target takes no more."""
    with suppress(OSError):
        sent = 0
        while sent < len(data):
            sent += await target.send(data[sent:])
        return True
    return False
