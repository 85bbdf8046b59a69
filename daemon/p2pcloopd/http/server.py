"""An HTTP/1.1 server of files that may be here in part: GET and HEAD, whole or one range.

What a path stands for is told by a function that it is given; it knows no directory. Overload is
met by refusing: so many connections, a header of so many bytes, so long to send it and so long to
take an answer. (h11's own state machine says what may follow what.)
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Protocol

import h11
import trio

from p2pcloop.errors import BusyError, P2pcloopError, UsageError
from p2pcloop.formats.link import format_peer
from p2pcloopd.http.wire import MAX_HEADER, USER_AGENT, CountedStream, Wire

MAX_CONNECTIONS = 256
IDLE_SECONDS = 30
"""Between two requests, and until the whole header of one is here."""

TAKE_SECONDS = 30
"""Until a client has taken a part of an answer."""

RECEIVE_SIZE = 8 << 10
"""Bytes by which a header may be over its limit, if it ends there."""

PART_SIZE = 256 << 10
"""Bytes of content that an answer keeps in memory."""

_RANGE = re.compile(r"bytes=([0-9]{0,20})-([0-9]{0,20})")

_log = logging.getLogger(__name__)


class File(Protocol):
    """A file that may be here in part."""

    @property
    def size(self) -> int:
        """Bytes of all of it."""

    @property
    def media_type(self) -> str:
        """For the header Content-Type."""

    @property
    def lasting(self) -> bool:
        """Whether the path means the same bytes for ever; if not, no cache is to keep them."""

    def here(self, offset: int, length: int) -> bool:
        """Whether all of these bytes are here."""

    async def read(self, offset: int, length: int) -> bytes:
        """These bytes.

        Raises:
            P2pcloopError: they are not here any more, or the disk refuses.
        """


Find = Callable[[str], Awaitable[File | None]]
"""What a path, without its first slash, stands for."""


class Pace:
    """Keeps what all connections send together to a rate in bytes a second; 0: no limit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes may be sent."""
        if not self._rate:
            return
        self._free_at = max(self._free_at, trio.current_time()) + size / self._rate
        await trio.sleep_until(self._free_at)


async def open_http_listener(host: str, port: int) -> trio.SocketListener:
    """Listen on an address.

    Raises:
        BusyError: the port is taken.
        UsageError: the address is not one to listen on.
    """
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host)
    except OSError as err:
        kind = BusyError if err.errno == errno.EADDRINUSE else UsageError
        raise kind(
            f"cannot listen on {format_peer((host, port))}: {err.strerror}",
            hint="choose another address or port",
        ) from err
    return listener


async def serve_http(
    listeners: Sequence[trio.SocketListener],
    find: Find,
    wire: Wire,
    pace: Pace,
    *,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve every client that connects, until cancelled; `wire` counts what crosses."""
    open_connections = 0

    async def serve(plain: trio.SocketStream) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            async with CountedStream(plain, wire) as stream:
                connection = _Connection(stream, find, pace)
                if open_connections > MAX_CONNECTIONS:
                    await connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
                else:
                    await connection.run()
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # who hangs up, or takes nothing, is let go
        except h11.LocalProtocolError:
            # Ours to mend, and nothing that strangers should end p2pcloopd by.
            _log.exception("an answer over HTTP would have been malformed")
        finally:
            open_connections -= 1

    await trio.serve_listeners(serve, list(listeners), task_status=task_status)


class _Connection:
    """One client."""

    def __init__(self, stream: trio.abc.Stream, find: Find, pace: Pace) -> None:
        self._stream = stream
        self._find = find
        self._pace = pace
        self._head_only = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)

    async def run(self) -> None:
        """Answer one request after the other."""
        try:
            while await self._answer_next():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as err:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self.refuse(HTTPStatus(err.error_status_hint))

    async def refuse(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        """Answer with a status and a line of text, and have the connection closed."""
        await self._status(status, *headers, ("Connection", "close"))

    async def _answer_next(self) -> bool:
        """Answer a request; whether another may follow."""
        self._head_only = False
        with trio.move_on_after(IDLE_SECONDS) as waiting:
            request = await self._event()
        if waiting.cancelled_caught or not isinstance(request, h11.Request):
            return False
        headers = dict(request.headers)
        self._head_only = request.method == b"HEAD"
        if b"content-length" in headers or b"transfer-encoding" in headers:
            await self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return False
        await self._event()  # the end of the request, which has no body
        if request.method == b"GET":
            wanted = None if b"if-range" in headers else headers.get(b"range")
            await self._answer(request.target.decode("ascii").removeprefix("/"), wanted)
        elif self._head_only:
            await self._answer(request.target.decode("ascii").removeprefix("/"), None)
        else:
            await self._status(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
        return self._http.our_state is self._http.their_state is h11.DONE

    async def _answer(self, path: str, wanted: bytes | None) -> None:
        """Answer a GET or HEAD; `wanted` is the header Range."""
        try:
            file = await self._find(path)
        except P2pcloopError as err:
            _log.warning("cannot serve %s over HTTP: %s", path, err)
            file = None
        if file is None:
            await self._status(HTTPStatus.NOT_FOUND)
            return
        span = _parse_range(wanted, file.size)
        offset, length = span or (0, file.size)
        headers = [("Content-Type", file.media_type), ("Accept-Ranges", "bytes")]
        if not file.lasting:
            headers.append(("Cache-Control", "no-store"))
        if span is not None and not length:
            unmet = ("Content-Range", f"bytes */{file.size}")
            await self._status(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, unmet)
        elif not file.here(offset, length):
            await self._status(HTTPStatus.NOT_FOUND)
        elif span is None:
            await self._send_head(HTTPStatus.OK, length, headers)
            await self._send_file(file, offset, length)
        else:
            headers.append(("Content-Range", f"bytes {offset}-{offset + length - 1}/{file.size}"))
            await self._send_head(HTTPStatus.PARTIAL_CONTENT, length, headers)
            await self._send_file(file, offset, length)

    async def _send_file(self, file: File, offset: int, length: int) -> None:
        end = offset if self._head_only else offset + length
        while offset < end:
            size = min(PART_SIZE, end - offset)
            try:
                data = await file.read(offset, size)
            except P2pcloopError as err:
                # More was announced than can be sent: only hanging up says so.
                _log.warning("an answer over HTTP is broken off: %s", err)
                raise trio.BrokenResourceError from err
            await self._pace.take(size)
            await self._send(h11.Data(data=data))
            offset += size
        await self._send(h11.EndOfMessage())

    async def _status(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        """Answer with a status and a line of text."""
        text = f"{status.phrase}\n".encode()
        await self._send_head(status, len(text), [("Content-Type", "text/plain"), *headers])
        if not self._head_only:
            await self._send(h11.Data(data=text))
        await self._send(h11.EndOfMessage())

    async def _send_head(
        self, status: HTTPStatus, length: int, headers: list[tuple[str, str]]
    ) -> None:
        headers = [("Server", USER_AGENT), ("Content-Length", str(length)), *headers]
        await self._send(h11.Response(status_code=status, headers=headers, reason=status.phrase))

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            with trio.fail_after(TAKE_SECONDS):
                await self._stream.send_all(data)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Event) or event is h11.PAUSED:
                return event
            try:
                self._http.receive_data(bytes(await self._stream.receive_some(RECEIVE_SIZE)))
            except trio.BrokenResourceError:
                self._http.receive_data(b"")


def _parse_range(wanted: bytes | None, size: int) -> tuple[int, int] | None:
    """Offset and length of a single range (RFC 9110, 14.1.2); None: the whole is asked for.

    A range outside the file has length 0. What is no single range of bytes is passed over (14.2).
    """
    found = _RANGE.fullmatch((wanted or b"").decode("latin-1"))
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return size - length, length
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        return None
    return first, max(0, last + 1 - first)
