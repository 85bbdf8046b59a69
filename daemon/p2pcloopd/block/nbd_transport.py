"""The transport of an NBD connection: a plain socket, or TLS once that was started.

At any time at most one task receives from a connection, and at most one sends.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final, Protocol

import trio

from p2pcloop.protocol.nbd_wire import RemoteProtocolError
from p2pcloop.words import tr

_TLS_PART: Final = 256 << 10
"""Bytes encrypted at a time: this bounds the memory, which else would be a whole reply once
more."""


class Transport(Protocol):
    """The bytes of one connection."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and put them into `buffer`; return how many, 0 when the client is gone."""

    async def send_all(self, data: memoryview) -> None:
        """Send all of `data`; a checkpoint only if the connection is full, or is TLS.

        Raises:
            OSError: the client is gone.
        """

    async def wait_gone(self) -> None:
        """Return when the client, which should send nothing more, sends something or is gone."""


class PlainTransport:
    """A non-blocking socket, which is not owned. A stream of trio's would reschedule at each
    call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Transport.receive_into`."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return self._sock.recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError:
                return 0

    async def send_all(self, data: memoryview) -> None:
        """See `Transport.send_all`."""
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)

    async def wait_gone(self) -> None:
        """See `Transport.wait_gone`."""
        await trio.lowlevel.wait_readable(self._sock)


class TlsTransport:
    """A socket, which is not owned, after the TLS handshake. At its end there is no closing message
    of TLS: NBD's own messages tell where a session ends."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext) -> TlsTransport:
        """Shake hands with the client.

        Raises:
            RemoteProtocolError: it does not speak TLS, or has no trusted certificate.
        """
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as err:
            raise RemoteProtocolError(
                tr("the TLS handshake failed: {cause}", cause=err.__cause__ or err)
            ) from err
        return cls(tls)

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Transport.receive_into`."""
        try:
            data = await self._stream.receive_some(len(buffer))
        except trio.BrokenResourceError:
            return 0
        buffer[: len(data)] = data
        return len(data)

    async def send_all(self, data: memoryview) -> None:
        """See `Transport.send_all`."""
        try:
            for at in range(0, len(data), _TLS_PART):
                await self._stream.send_all(data[at : at + _TLS_PART])
        except trio.BrokenResourceError as err:
            raise OSError(str(err)) from err

    async def wait_gone(self) -> None:
        """See `Transport.wait_gone`."""
        await self.receive_into(memoryview(bytearray(1)))
