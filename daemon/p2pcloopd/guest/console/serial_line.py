"""The console of a guest in QEMU: a serial line, whose other end is a socket of this process."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio

from p2pcloopd.guest.console.console import CHUNK


class SerialLine:
    """A serial line.

    Attributes:
        listens: set once the guest hears what is typed. QEMU loses what comes before a resumed
            guest has its state.
        theirs: the end for QEMU, to be closed here once it has it.
    """

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self._socket = trio.socket.from_stdlib_socket(ours)
        self.listens = trio.Event()
        self._sending = trio.Lock()
        self._scope = trio.CancelScope()
        self._is_released = False

    async def receive(self) -> bytes:
        """Return what the guest prints next; empty once it has ended."""
        try:
            return await self._socket.recv(CHUNK)
        except ConnectionResetError:
            return b""

    async def send(self, data: bytes) -> None:
        """Type `data`, behind what others type; waits while the guest does not read."""
        async with self._sending:
            with trio.CancelScope() as scope:
                self._scope = scope
                if self._is_released:
                    return
                await self.listens.wait()
                with suppress(OSError, trio.ClosedResourceError):  # the guest has ended
                    while data:
                        data = data[await self._socket.send(data) :]

    def release(self) -> None:
        """Have all who wait to send return: the guest reads no more."""
        self._is_released = True
        self._scope.cancel()

    def copy_window_size(self, terminal: int) -> None:
        """Do nothing: a serial line carries bytes alone."""

    def set_size(self, size: bytes) -> None:
        """Do nothing, as above."""

    def close(self) -> None:
        """Close both ends."""
        self.theirs.close()
        self._socket.close()
