"""Ports of this machine that lead to a guest of a LAN: connections, carried by the LAN's owner.

A guest's process opens the ports and hands them over when it joins. The owner makes the connections
to the guest inside the LAN's namespace, so the guest sees them come from the LAN's gateway.
"""

from __future__ import annotations

import fcntl
import os
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
_RESET, _IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
"""struct linger: a close tells the other end that the connection has failed; or it does not, and
what was sent before is still taken."""

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
                _set_linger(client, _RESET)
                await self._join(client, target)
        finally:
            self._room.release()

    async def _join(self, client: trio.socket.SocketType, target: tuple[str, int]) -> None:
        try:
            made = self.dial()
            made.setblocking(False)
            guest = trio.socket.from_stdlib_socket(made)
        except (GuestError, OSError):  # no descriptor is free
            return
        with guest:
            _set_linger(guest, _RESET)
            try:
                await guest.connect(target)
            except OSError:  # the guest refuses
                return
            async with trio.open_nursery() as nursery:
                joined = _Joined(nursery.cancel_scope)
                nursery.start_soon(joined.carry, client, guest)
                nursery.start_soon(joined.carry, guest, client)


@dataclass(slots=True)
class _Joined:
    """Two connections that are one to their ends, the client and the guest.

    At first the close of each is a reset: whatever ends this, also a kill, a cut-off answer does
    not look whole. A connection is closed in order only once its end was told that the other end
    has said all.

    Attributes:
        scope: of both ways.
        failed: connections that have failed. Behind what such an end said before there is an end
            of the data, which looks as if it had said all.
    """

    scope: trio.CancelScope
    failed: set[trio.socket.SocketType] = field(default_factory=set)

    async def carry(self, source: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
        """Carry what `source` says to `target`, to its end, and tell `target` of that.

        Where `target` takes no more or fails, the other way goes on: it carries what `target` said
        before. Where `source` fails, both ways end once `target` has taken what `source` said
        before. `target` then sees a reset, also if it has not taken that in time: then the rest is
        lost to it.
        """
        try:
            while data := await source.recv(_CHUNK):
                try:
                    await _send(target, data)
                except BrokenPipeError:  # it has said all, or is among the failed ones already
                    return
                except OSError:
                    self._fail(target)
                    return
        except OSError:
            self._fail(source)
        if source in self.failed:
            await _all_taken(target)
            self.scope.cancel()
            return
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
            _set_linger(target, _IN_ORDER)

    def _fail(self, end: trio.socket.SocketType) -> None:
        self.failed.add(end)
        deadline = trio.current_time() + _TAKE_SECONDS
        self.scope.deadline = min(self.scope.deadline, deadline)


def _set_linger(end: trio.socket.SocketType, linger: bytes) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def _send(target: trio.socket.SocketType, data: bytes) -> None:
    """Send all of it. No other task runs between an error and the caller: the system tells of it
    only once, and the way back would take it for the end of what `target` says."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(target.fileno(), left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(target)


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
