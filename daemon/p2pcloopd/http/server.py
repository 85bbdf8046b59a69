"""An HTTP/1.1 server of files that may be here in part: GET, HEAD, and POST of what is dispatched.

What a path stands for is told by a `Site` that it is given; it knows no directory. Overload is met
by refusing: so many connections, a header of so many bytes, so long to send it and so long to take
an answer. (h11's own state machine says what may follow what; semantics.py what is asked for.)
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from http import HTTPMethod, HTTPStatus
from typing import Protocol

import h11
import trio

from p2pcloop.errors import BusyError, P2pcloopError, UsageError
from p2pcloop.formats.link import format_peer
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.accepting import note_taken, pass_over
from p2pcloopd.http.semantics import (
    Headers,
    fields,
    is_host,
    parse_range,
    path_of,
    precondition,
    range_applies,
)
from p2pcloopd.http.wire import MAX_HEADER, USER_AGENT, CountedStream, Pace, Wire, next_event

MAX_CONNECTIONS = 256
IDLE_SECONDS = 30
"""Between two requests, and until the whole header of one is here."""

TAKE_SECONDS = 30
"""Until a client has taken a part of an answer."""

LINGER_SECONDS = 2
"""After a refusal: what the client still sends is thrown away, or the system would throw away the
refusal (RFC 9112, 9.6)."""

RECEIVE_SIZE = 8 << 10
"""Bytes by which a header may be over its limit, if it ends there."""

MAX_BODY = 16 << 10
"""Bytes of a request's body, which means nothing here."""

PART_SIZE = 256 << 10
"""Bytes of content that an answer keeps in memory."""

FOR_EVER = "public, max-age=31536000, immutable"
"""Cache-Control of what never changes."""

_KNOWN_METHODS = {method.value for method in HTTPMethod}
_BODIES = {"content-length", "transfer-encoding"}

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

    @property
    def etag(self) -> str | None:
        """What is another for other bytes, without quotes (RFC 9110, 8.8.3); None: unknown."""

    @property
    def modified(self) -> int | None:
        """When it became what it is, in seconds since 1970 (UTC); None where that is unknown."""

    def here(self, offset: int, length: int) -> bool:
        """Whether all of these bytes are here."""

    async def read(self, offset: int, length: int) -> bytes:
        """These bytes.

        Raises:
            P2pcloopError: they are not here any more, or the disk refuses.
        """


@dataclass(frozen=True, slots=True)
class BytesFile:
    """A file in memory; see `File`."""

    data: bytes
    etag: str | None
    modified: int | None = None
    media_type: str = "application/octet-stream"
    lasting: bool = False

    @property
    def size(self) -> int:
        """See `File`."""
        return len(self.data)

    def here(self, offset: int, length: int) -> bool:
        """See `File`."""
        return offset + length <= len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        """See `File`."""
        return self.data[offset : offset + length]


class Site(Protocol):
    """What paths stand for, each without its first slash."""

    def methods(self, path: str) -> tuple[str, ...]:
        """What may be asked of a path: GET and HEAD, or POST; empty where nothing can be there."""

    async def find(self, path: str) -> File | None:
        """The file of a path, or None where there is none; changes nothing.

        Raises:
            P2pcloopError: it cannot be told.
        """

    async def post(self, path: str) -> File | None:
        """What a POST is answered with, or None where there is nothing. Errors as of `find`."""


async def open_http_listener(host: str, port: int, hint: str | None = None) -> trio.SocketListener:
    """Listen on an address.

    Args:
        hint: for the error.

    Raises:
        BusyError: the port is taken.
        UsageError: the address is not one to listen on.
    """
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host)
    except OSError as err:
        kind = BusyError if err.errno == errno.EADDRINUSE else UsageError
        raise kind(
            tr(
                "cannot listen on {where}: {message}",
                where=format_peer((host, port)),
                message=err.strerror,
            ),
            hint=hint,
        ) from err
    return listener


async def serve_http(
    listeners: Sequence[trio.SocketListener],
    site: Site,
    wire: Wire,
    pace: Pace,
    *,
    admits: Callable[[str], bool] = lambda _: True,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve every client that connects, until cancelled; `wire` counts what crosses.

    Args:
        admits: whether a client at an address is served; others are hung up on.
    """
    open_connections = 0

    async def serve(plain: trio.SocketStream) -> None:
        nonlocal open_connections
        if not admits(_address(plain)):
            await trio.aclose_forcefully(plain)
            return
        open_connections += 1
        try:
            async with CountedStream(plain, wire) as stream:
                connection = _Connection(stream, site, pace)
                if open_connections > 2 * MAX_CONNECTIONS:
                    return  # refusals take a moment, too
                if open_connections > MAX_CONNECTIONS:
                    await connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE, ("Retry-After", "1"))
                else:
                    await connection.run()
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # who hangs up, or takes nothing, is let go
        except Exception:
            # Ours to mend, and nothing that strangers should end p2pcloopd by.
            _log.exception("a bug ends a connection over HTTP, and no other")
        finally:
            open_connections -= 1

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, listener, serve, nursery)
        task_status.started()


async def _accept(
    listener: trio.SocketListener,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Take all who connected each time that the loop comes round.

    `trio.serve_listeners` takes one, and then every connection has its turn: with 200 at work, the
    last of 200 more waited for over a second.
    """
    async with listener:
        plain = socket.socket(fileno=os.dup(listener.socket.fileno()))
        with plain:
            plain.setblocking(False)
            await _accept_all(plain, serve, nursery)


async def _accept_all(
    plain: socket.socket,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    while True:
        await trio.lowlevel.wait_readable(plain)
        try:
            for _ in range(MAX_CONNECTIONS):
                nursery.start_soon(serve, trio.SocketStream(_take(plain)))
        except BlockingIOError:
            continue  # that was all
        except OSError as err:
            await pass_over(err)


def _address(client: trio.SocketStream) -> str:
    """The client's address; empty if it has gone already."""
    try:
        return str(client.socket.getpeername()[0])
    except OSError:
        return ""


def _take(listening: socket.socket) -> trio.socket.SocketType:
    accepted, _ = listening.accept()
    note_taken()
    return trio.socket.from_stdlib_socket(accepted)


class _Connection:
    """One client."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, site: Site, pace: Pace) -> None:
        self._stream = stream
        self._site = site
        self._pace = pace
        self._head_only = False
        self._line_ended = False
        self._http = _new_cycle()

    async def run(self) -> None:
        """Answer one request after the other."""
        try:
            while await self._answer_next():
                # What came already of the next one; h11 itself takes no empty line before it.
                data, ended = self._http.trailing_data
                if data:
                    self._http = _new_cycle()
                else:
                    self._http.start_next_cycle()
                self._line_ended = False
                self._receive(data)
                if ended:
                    self._http.receive_data(b"")
        except h11.RemoteProtocolError as err:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                status = HTTPStatus(err.error_status_hint)
                if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE and not self._line_ended:
                    status = HTTPStatus.REQUEST_URI_TOO_LONG  # RFC 9112, 3
                self._head_only = False  # what was asked for before says nothing of this answer
                await self.refuse(status)

    async def refuse(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        """Answer with a status and a line of text, and have the connection closed."""
        await self._status(status, *headers, ("Connection", "close"))
        with trio.move_on_after(LINGER_SECONDS):
            await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVE_SIZE):
                pass

    async def _answer_next(self) -> bool:
        """Answer a request; whether another may follow."""
        self._head_only = False
        with trio.move_on_after(IDLE_SECONDS) as waiting:
            request = await self._event()
        if waiting.cancelled_caught or not isinstance(request, h11.Request):
            return False
        self._head_only = request.method == b"HEAD"
        headers = fields(request.headers)
        if (fault := _fault(request, headers)) is not None:
            await self.refuse(fault)
            return False
        if not await self._pass_over_body():
            await self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return False
        await self._dispatch(
            request.method.decode("ascii"), request.target.decode("ascii"), headers
        )
        return self._http.our_state is self._http.their_state is h11.DONE

    async def _pass_over_body(self) -> bool:
        """Receive what follows the header, which means nothing; whether it was little."""
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
            await self._send(go_on)
        event = next_event(self._http)
        if isinstance(event, h11.EndOfMessage):
            return True
        size = 0
        with trio.fail_after(IDLE_SECONDS):
            while not isinstance(event, h11.EndOfMessage):
                size += len(event.data) if isinstance(event, h11.Data) else 0
                if size > MAX_BODY:
                    return False
                event = await self._event()
        return True

    async def _dispatch(self, method: str, target: str, headers: Headers) -> None:
        path = path_of(target)
        if method not in _KNOWN_METHODS:
            await self._status(HTTPStatus.NOT_IMPLEMENTED)
        elif method == "OPTIONS":
            allowed = ("GET", "HEAD", "POST") if path is None else self._site.methods(path)
            head = _head(HTTPStatus.NO_CONTENT, None, [("Allow", ", ".join(allowed))])
            await self._send(head, h11.EndOfMessage())
        elif path is None:
            await self._status(HTTPStatus.BAD_REQUEST)
        elif (allowed := self._site.methods(path)) and method not in allowed:
            await self._status(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", ", ".join(allowed)))
        else:
            await self._answer(method, path, headers)

    async def _answer(self, method: str, path: str, headers: Headers) -> None:
        """Answer a GET, HEAD or POST."""
        try:
            file = await (self._site.post(path) if method == "POST" else self._site.find(path))
        except P2pcloopError as err:
            _log.warning("cannot serve %s over HTTP: %s", path, err)
            file = None
        if file is None:
            await self._nothing()
        elif method == "POST":
            await self._send_part(file, None)
        else:
            await self._answer_file(file, headers, is_get=method == "GET")

    async def _answer_file(self, file: File, headers: Headers, *, is_get: bool) -> None:
        etag, modified = _etag(file), file.modified
        instead = precondition(headers, etag, modified)
        if instead is HTTPStatus.NOT_MODIFIED:
            await self._send(_head(instead, None, _validators(file)), h11.EndOfMessage())
            return
        if instead is not None:
            await self._status(instead)
            return
        # Of HEAD, Range means nothing (RFC 9110, 14.2).
        ranged = is_get and range_applies(headers, etag, modified, time.time())
        span = parse_range(headers.get("range") if ranged else None, file.size)
        if span is not None and not span[1]:
            unmet = ("Content-Range", f"bytes */{file.size}")
            await self._status(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, unmet)
        elif not file.here(*(span or (0, file.size))):
            await self._nothing()
        else:
            await self._send_part(file, span)

    async def _nothing(self) -> None:
        """Tell that it is not here; it may be in a moment, so no cache is to keep that."""
        await self._status(HTTPStatus.NOT_FOUND, ("Cache-Control", "no-store"))

    async def _send_part(self, file: File, span: tuple[int, int] | None) -> None:
        """Answer with a file that is here, or with a part of it: offset and length."""
        offset, length = span or (0, file.size)
        headers = [
            ("Content-Type", file.media_type),
            ("Accept-Ranges", "bytes"),
            *_validators(file),
        ]
        if span is not None:
            headers.append(("Content-Range", f"bytes {offset}-{offset + length - 1}/{file.size}"))
        data = b""
        if length and not self._head_only:
            try:
                data = await file.read(offset, min(PART_SIZE, length))
            except P2pcloopError as err:
                _log.warning("not served over HTTP: %s", err)
                await self._nothing()
                return
        status = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
        head = _head(status, length, headers)
        end = offset + length
        if not data:
            await self._send(head, h11.EndOfMessage())
            return
        await self._pace.claim(len(data))
        await self._send(head, h11.Data(data=data))
        while (offset := offset + len(data)) < end:
            data = await self._read_on(file, offset, min(PART_SIZE, end - offset))
            await self._pace.claim(len(data))
            await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def _read_on(self, file: File, offset: int, length: int) -> bytes:
        try:
            return await file.read(offset, length)
        except P2pcloopError as err:
            # More was announced than can be sent: only hanging up says so.
            _log.warning("an answer over HTTP is broken off: %s", err)
            raise trio.BrokenResourceError from err

    async def _status(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        """Answer with a status and a line of text."""
        text = f"{status.phrase}\n".encode()
        head = _head(status, len(text), [("Content-Type", "text/plain"), *headers])
        body = [] if self._head_only else [h11.Data(data=text)]
        await self._send(head, *body, h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        if data:
            with trio.fail_after(TAKE_SECONDS):
                await self._stream.send_all(data)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = next_event(self._http)
            if isinstance(event, h11.Event) or event is h11.PAUSED:
                return event
            try:
                data = bytes(await self._stream.receive_some(RECEIVE_SIZE))
            except trio.BrokenResourceError:
                data = b""
            if data:
                self._receive(data)
            else:
                self._http.receive_data(data)

    def _receive(self, data: bytes) -> None:
        """Give data to h11, but for empty lines before a request (RFC 9112, 2.2)."""
        if self._http.their_state is h11.IDLE:
            if not self._http.trailing_data[0]:
                data = data.lstrip(b"\r\n")
            self._line_ended = self._line_ended or b"\n" in data
        if data:
            self._http.receive_data(data)


def _new_cycle() -> h11.Connection:
    """h11's state for one request and its answer."""
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)


def _fault(request: h11.Request, headers: Headers) -> HTTPStatus | None:
    """What is wrong with a request's header that h11 lets pass."""
    if request.http_version[:2] != b"1.":
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
    if headers.keys() >= _BODIES or (
        "transfer-encoding" in headers and request.http_version < b"1.1"
    ):
        return HTTPStatus.BAD_REQUEST  # a proxy on the way may see another end (RFC 9112, 6.1)
    if not is_host(headers.get("host", "")):
        return HTTPStatus.BAD_REQUEST
    expected = headers.get("expect")
    if expected is not None and expected.lower() != "100-continue":
        return HTTPStatus.EXPECTATION_FAILED
    length = headers.get("content-length")
    if length is not None and int(length) > MAX_BODY:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return None


def _head(status: HTTPStatus, length: int | None, headers: list[tuple[str, str]]) -> h11.Response:
    first = [("Server", USER_AGENT), ("Date", _date(int(time.time())))]
    if length is not None:
        first.append(("Content-Length", str(length)))
    return h11.Response(status_code=status, headers=[*first, *headers], reason=status.phrase)


@lru_cache
def _date(seconds: int) -> str:
    """As HTTP tells dates (RFC 9110, 5.6.7)."""
    from email.utils import formatdate  # noqa: PLC0415  p2pcloopd starts sooner

    return formatdate(seconds, usegmt=True)


def _etag(file: File) -> str | None:
    return None if file.etag is None else f'"{file.etag}"'


def _validators(file: File) -> list[tuple[str, str]]:
    """What caches go by."""
    headers = [("Cache-Control", FOR_EVER if file.lasting else "no-store")]
    etag = _etag(file)
    if etag is not None:
        headers.append(("ETag", etag))
    if file.modified is not None:
        # Never later than now (RFC 9110, 8.8.2.1).
        headers.append(("Last-Modified", _date(min(file.modified, int(time.time())))))
    return headers
