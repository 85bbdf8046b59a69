"""What both ends of HTTP share: counting what crosses, and errors of connections."""

from __future__ import annotations

from dataclasses import dataclass

import h11
import trio

from p2pcloop import __version__

USER_AGENT = f"p2pcloop/{__version__}"

MAX_HEADER = 16 << 10
"""Bytes of a request's or an answer's header: h11 keeps no more than this of either."""

RECEIVE_SIZE = 64 << 10

_HEADERS = 40
"""Bytes of the IPv4 and the TCP header of a packet, and of the one that acknowledges it."""

_PACKET = 1500 - _HEADERS
_OPENING_AND_CLOSING = 2 * _HEADERS


def next_event(http: h11.Connection) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
    """The next event of a connection.

    Raises:
        h11.RemoteProtocolError: the other end breaks the protocol.
    """
    try:
        return http.next_event()
    except ValueError as err:
        # h11 up to 0.14 takes a Content-Length of any length, and int() does not.
        raise h11.RemoteProtocolError("a number of too many digits") from err


@dataclass(slots=True)
class Wire:
    """Bytes that crossed since the start, estimated TCP/IP headers included."""

    received: int = 0
    sent: int = 0

    def add(self, received: int, sent: int) -> None:
        """Count data that came or went, and the headers of its packets and acknowledgements."""
        overhead = -(-max(received, sent) // _PACKET) * _HEADERS
        self.received += received + overhead
        self.sent += sent + overhead


class Pace:
    """Keeps what all connections carry together to a rate in bytes a second; 0: no limit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0

    def set_rate(self, rate: int) -> None:
        """Keep to another rate, for what comes next."""
        self._rate = rate
        self._free_at = 0.0

    async def claim(self, size: int) -> None:
        """Wait until `size` more bytes may cross."""
        if not self._rate:
            return
        self._free_at = max(self._free_at, trio.current_time()) + size / self._rate
        await trio.sleep_until(self._free_at)


class CountedStream(trio.abc.HalfCloseableStream):
    """A TCP connection whose bytes are counted, below TLS where there is any."""

    def __init__(self, stream: trio.SocketStream, wire: Wire) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._wire = wire
        wire.received += _OPENING_AND_CLOSING
        wire.sent += _OPENING_AND_CLOSING

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        self._wire.add(0, len(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        data = await self._stream.receive_some(max_bytes)
        self._wire.add(len(data), 0)
        return data

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()
