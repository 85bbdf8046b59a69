"""An HTTP/1.1 client that gets exactly what it asked for, or tells why not.

One GET at a time on a connection; connections are kept a while. A redirect is followed on the same
host alone (`_follow`), and nothing of the environment (proxies, credentials) is used: a mirror is
what its URL says. Every wait and every body has a limit.
"""

from __future__ import annotations

import re
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from urllib.parse import quote, urljoin, urlsplit

import h11
import trio

from p2pcloop.errors import FormatError, NotHereError, UnreachableError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.http.speed import Speed
from p2pcloopd.http.wire import (
    MAX_HEADER,
    RECEIVE_SIZE,
    USER_AGENT,
    CountedStream,
    Pace,
    Wire,
    next_event,
)

CONNECT_SECONDS = 5
SILENCE_SECONDS = 10
"""Until an answer begins, and between any two parts of it."""

DRAIN_SECONDS = 1
"""For what follows an answer that is of no use: longer than a new connection takes is no gain."""

SLOWEST_RATE = 4 << 10
"""Bytes a second: an answer that is slower, all in all, is given up."""

MAX_KEPT = 16
"""Connections that are kept for a next request."""

MAX_REDIRECTS = 3
"""Redirects that one request follows: to TLS, to another name of the file, and one to spare."""

MAX_TIMED = 64
"""Servers of which it is known how fast they are."""

_PATH_CHARACTERS = "/%:@!$&'()*+,;=~"  # pchar of RFC 3986, and what is encoded already


Take = Callable[[bytes], Awaitable[None]]
"""Takes bytes as they come."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file: `offset` to `offset + length`."""

    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.offset}-{self.offset + self.length - 1}"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks for.

    Attributes:
        limit: bytes of the answer, at most.
        span: the part of the file, None for all of it.
        take: takes the answer as it comes; None to have it returned.
    """

    limit: int
    span: Span | None = None
    method: str = "GET"
    take: Take | None = None


class OverloadedError(UnreachableError):
    """A server says that it cannot answer now (429, 5xx), which may be otherwise soon.

    Attributes:
        after: seconds until it wants to be asked again (Retry-After), None where it does not say.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class RangesIgnoredError(FormatError):
    """A server answers requests for a part of a file with something else: it serves whole files."""


class WrongRangeError(FormatError):
    """A server answers a request for a part of a file with another part."""


class _Limit:
    """How long one request may take: all in all, and until something comes.

    Attributes:
        scope: ends it.
    """

    def __init__(self, seconds: float) -> None:
        self._ends_at = trio.current_time() + seconds
        self.scope = trio.CancelScope(deadline=self._ends_at)

    def begin_wait(self) -> None:
        """The server is waited for from now on."""
        self.scope.deadline = min(self._ends_at, trio.current_time() + SILENCE_SECONDS)

    def end_wait(self) -> None:
        """It is not: something else takes its time."""
        self.scope.deadline = self._ends_at


class _RedirectedError(Exception):
    """An answer sends the request elsewhere.

    Attributes:
        location: where to, as it stands in the answer.
    """

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class HttpClient:
    """Gets files by their URLs.

    Attributes:
        wire: what crossed.
        pace: at which answers are received.
    """

    def __init__(self, rate: int = 0) -> None:
        """Limit what comes to `rate` bytes a second; 0: no limit."""
        self.wire = Wire()
        self.pace = Pace(rate)
        self._idle: list[_Connection] = []
        self._speeds: OrderedDict[_Place, Speed] = OrderedDict()

    async def get(self, url: str, limit: int) -> bytes:
        """Get a whole file of at most `limit` bytes.

        Raises:
            NotHereError: the server says that there is none.
            UnreachableError: no connection, no answer in time, an error, or a redirect to another
                host; `OverloadedError` where the server is to be asked again soon.
            FormatError: the answer is not what was asked for, or over the limit.
        """
        return await self._get(url, _Wanted(limit))

    async def post(self, url: str, limit: int) -> bytes:
        """Ask for something that is not the same twice: at most `limit` bytes. Errors as for `get`.

        Nothing is sent with it. A server that takes no POST has nothing (`NotHereError`).
        """
        return await self._get(url, _Wanted(limit, method="POST"))

    async def get_span(self, url: str, span: Span) -> bytes:
        """Get exactly these bytes of a file. Errors as for `get`, and `RangesIgnoredError`."""
        return await self._get(url, _Wanted(span.length, span))

    async def get_parts(self, url: str, size: int, take: Take) -> None:
        """Have a whole file of exactly `size` bytes handed over as it comes. Errors as of `get`."""
        length = 0

        async def count(data: bytes) -> None:
            nonlocal length
            length += len(data)
            await take(data)

        await self._get(url, _Wanted(size, take=count))
        if length != size:
            raise FormatError(
                tr(
                    "{url}: the file there has {length} bytes, and must have {size}",
                    url=url,
                    length=length,
                    size=size,
                )
            )

    def rate(self, url: str) -> float | None:
        """Bytes a second at which answers of this server come, once begun; None where unknown."""
        speed = self._speeds.get(_take_apart(url)[0])
        return None if speed is None else speed.rate

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop().stream)

    async def _get(self, url: str, wanted: _Wanted) -> bytes:
        limit = _Limit(CONNECT_SECONDS + SILENCE_SECONDS + wanted.limit / SLOWEST_RATE)
        with _errors_of(url):
            with limit.scope:
                at = url
                for _ in range(MAX_REDIRECTS + 1):
                    try:
                        return await self._get_there(at, wanted, limit)
                    except _RedirectedError as err:
                        at = _follow(at, err.location)
                told = tr("it redirects again and again, the last time to {at!r}", at=at[:200])
                raise UnreachableError(told)
            raise UnreachableError("no answer in time")

    async def _get_there(self, url: str, wanted: _Wanted, limit: _Limit) -> bytes:
        place, target = _take_apart(url)
        headers = [
            ("Host", place.authority),
            ("User-Agent", USER_AGENT),
            ("Accept-Encoding", "identity"),
        ]
        if wanted.span is not None:
            headers.append(("Range", f"bytes={wanted.span}"))
        if wanted.method == "POST":
            headers.append(("Content-Length", "0"))
        request = h11.Request(method=wanted.method, target=target, headers=headers)
        while True:
            kept = await self._take(place)
            connection = kept or await _connect(place, self.wire, self.pace)
            connection.limit = limit
            try:
                return await self._ask(connection, request, wanted)
            except _HungUpError:
                if not kept:
                    raise UnreachableError("it hung up without an answer") from None

    async def _take(self, place: _Place) -> _Connection | None:
        """A connection that was kept, the last used first; those that were hung up on go."""
        while True:
            fitting = (c for c in reversed(self._idle) if c.place == place or c.ended())
            connection = next(fitting, None)
            if connection is None:
                return None
            self._idle.remove(connection)
            if not connection.ended():
                return connection
            await trio.aclose_forcefully(connection.stream)  # others take theirs meanwhile

    async def _ask(self, connection: _Connection, request: h11.Request, wanted: _Wanted) -> bytes:
        keep = False
        try:
            answer = await connection.send(request)
            try:
                _check(answer, wanted.span, request.method)
            except (_RedirectedError, NotHereError, OverloadedError):
                keep = await connection.drain()
                raise
            body = await connection.body(wanted, self._speed(connection.place))
            if wanted.span is not None and len(body) != wanted.span.length:
                raise FormatError(
                    tr(
                        "answered {body_count} bytes where {length} were asked for",
                        body_count=len(body),
                        length=wanted.span.length,
                    )
                )
            keep = connection.again()
        finally:
            if keep and len(self._idle) < MAX_KEPT:
                self._idle.append(connection)
            else:
                await trio.aclose_forcefully(connection.stream)
        return body

    def _speed(self, place: _Place) -> Speed:
        speed = self._speeds.setdefault(place, Speed())
        self._speeds.move_to_end(place)
        if len(self._speeds) > MAX_TIMED:
            self._speeds.popitem(last=False)
        return speed


@dataclass(frozen=True, slots=True)
class _Place:
    """Where to connect."""

    secure: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class _HungUpError(Exception):
    """A connection ended before an answer began."""


class _Connection:
    """A connection to one place, at rest between two requests.

    Attributes:
        limit: of the request that it carries.
    """

    limit: _Limit

    def __init__(
        self, place: _Place, plain: CountedStream, stream: trio.abc.Stream, pace: Pace
    ) -> None:
        self.place = place
        self._pace = pace
        self.stream = stream
        self._plain = plain
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER)

    def ended(self) -> bool:
        """Whether the server hung up, or said something without a request."""
        return self._plain.socket.is_readable()

    async def send(self, request: h11.Request) -> h11.Response:
        """Send a request and wait until the answer begins."""
        try:
            # A server that refuses every request may have answered, and reset the connection.
            with suppress(trio.BrokenResourceError):
                await self.stream.send_all(self._http.send(request) or b"")
            self._http.send(h11.EndOfMessage())
            first = await self._receive()
        except trio.BrokenResourceError as err:
            raise _HungUpError from err
        if not first:
            raise _HungUpError
        while not isinstance(event := await self._event(), h11.Response):
            pass  # an answer that announces another (RFC 9110, 15.2)
        return event

    async def body(self, wanted: _Wanted, speed: Speed) -> bytes:
        """Receive what follows, to its end; hand it over as it comes, or return it all."""
        data = bytearray()
        length, first, begun = 0, 0, 0.0
        while isinstance(event := await self._event(), h11.Data):
            length += len(event.data)
            if length > wanted.limit:
                raise FormatError(tr("the answer is longer than {limit} bytes", limit=wanted.limit))
            if not first:
                first, begun = length, trio.current_time()
            if wanted.take is None:
                data += event.data
            else:
                await wanted.take(bytes(event.data))
        speed.record(length - first, trio.current_time() - begun)
        return bytes(data)

    async def drain(self) -> bool:
        """Receive the body of an answer that is of no use, if that is short and begins to come;
        whether the connection is good for another request."""
        with trio.move_on_after(DRAIN_SECONDS):
            try:
                await self.body(_Wanted(MAX_HEADER), Speed())
            except (
                FormatError,
                UnreachableError,
                h11.RemoteProtocolError,
                trio.BrokenResourceError,
            ):
                return False
            return self.again()
        return False

    def again(self) -> bool:
        """Make ready for another request; whether the connection is good for one."""
        done = self._http.our_state is self._http.their_state is h11.DONE
        if done and not self._http.trailing_data[0]:  # else the next answer would begin with it
            self._http.start_next_cycle()
            return True
        return False

    async def _event(self) -> h11.Event:
        more = True
        try:
            while (event := next_event(self._http)) is h11.NEED_DATA:
                more = await self._receive()
        except h11.RemoteProtocolError as err:
            if more:
                raise
            raise UnreachableError("it hung up before the end of its answer") from err
        assert not isinstance(event, type), "the protocol is not switched, and answers are read on"
        return event

    async def _receive(self) -> bool:
        self.limit.begin_wait()
        data = await self.stream.receive_some(RECEIVE_SIZE)
        self.limit.end_wait()
        await self._pace.claim(len(data))
        self._http.receive_data(bytes(data))
        return bool(data)


async def _connect(place: _Place, wire: Wire, pace: Pace) -> _Connection:
    with trio.fail_after(CONNECT_SECONDS):
        plain = CountedStream(await trio.open_tcp_stream(place.host, place.port), wire)
        if not place.secure:
            return _Connection(place, plain, plain, pace)
        secure = trio.SSLStream(plain, _tls(), server_hostname=place.host, https_compatible=True)
        try:
            await secure.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(plain)
            raise
        return _Connection(place, plain, secure, pace)


@cache
def _tls() -> ssl.SSLContext:
    """What the system trusts; certificates and host names are verified."""
    return ssl.create_default_context()


def _take_apart(url: str) -> tuple[_Place, str]:
    parts = urlsplit(url)
    try:
        place = _place(parts.scheme, parts.netloc)
    except ValueError as err:
        raise FormatError(tr("{url!r} is not a URL: {err}", url=url[:80], err=err)) from err
    return place, quote(parts.path or "/", safe=_PATH_CHARACTERS)


@lru_cache
def _place(scheme: str, netloc: str) -> _Place:
    """Where to connect for a URL. Errors: `ValueError`."""
    parts, secure = urlsplit(f"{scheme}://{netloc}"), scheme == "https"
    host = (parts.hostname or "").encode("idna").decode()
    return _Place(secure, host, parts.port or (443 if secure else 80))


def _follow(url: str, location: str) -> str:
    """The URL to which an answer of `url` redirects.

    The same host, and the same port or the one of TLS in place of the plain one: what a link names
    is what is asked. So no mirror's owner sends a request of this node elsewhere,
    to a service of its own network, say (docs/security.md).

    Raises:
        UnreachableError: it leads elsewhere.
    """
    try:
        there = urljoin(url, location)
        parts = urlsplit(there)
    except ValueError as err:
        raise FormatError(
            tr("it redirects to {location!r}, which is no URL", location=location[:200])
        ) from err
    place = _take_apart(url)[0]
    if parts.scheme in ("http", "https") and not parts.query:
        target = _take_apart(there)[0]
        secured = _Place(True, place.host, 443) if place.port == 80 else place
        if target in (place, secured):
            return there
    raise UnreachableError(
        tr(
            "it redirects to {there!r}, which is not followed: it is another place than the"
            " link names",
            there=there[:200],
        ),
        hint="use the URL to which it redirects, if you trust that",
    )


def _check(answer: h11.Response, span: Span | None, method: bytes) -> None:
    """Refuse any answer but the one that was asked for."""
    headers = {name: value.decode("latin-1") for name, value in answer.headers}
    match answer.status_code:
        case 404 | 410:
            raise NotHereError(
                tr("not there (status {status_code})", status_code=answer.status_code)
            )
        case 403 | 405 | 413 | 501 if method == b"POST":
            raise NotHereError(
                tr(
                    "nothing is dispatched there (status {status_code})",
                    status_code=answer.status_code,
                )
            )
        case 200 if span is not None and not _is_all(headers, span):
            raise RangesIgnoredError("the server ignores ranges (status 200 where 206 must be)")
        case 206 if span is not None:
            _check_range(headers, span)
        case 200:
            pass
        case 416:
            raise FormatError("the file there is shorter than it must be (status 416)")
        case status if 300 <= status < 400 and b"location" in headers:
            raise _RedirectedError(headers[b"location"])
        case 408 | 429 | 500 | 502 | 503 | 504 as status:
            raise OverloadedError(
                tr("the server answers with status {status}", status=status),
                after=_seconds_until(headers.get(b"retry-after", "")),
            )
        case status:
            raise UnreachableError(tr("the server answers with status {status}", status=status))
    if headers.get(b"content-encoding", "").strip().lower() not in ("", "identity"):
        raise FormatError("the server changes the content (Content-Encoding)")


def _is_all(headers: dict[bytes, str], span: Span) -> bool:
    """Whether an answer with a whole file is what was asked for: no more is in the file.

    Some servers then answer as if no part had been asked for (RFC 9110, 14.2 allows it).
    """
    return span.offset == 0 and headers.get(b"content-length") == str(span.length)


_CONTENT_RANGE = re.compile(r"\s*bytes[\s=]+([0-9]+-[0-9]+)\s*(?:/|$)", re.IGNORECASE)


def _check_range(headers: dict[bytes, str], span: Span) -> None:
    """Compare what a 206 says with what was asked for (RFC 9110, 14.4, 15.3.7)."""
    if headers.get(b"content-type", "").lower().startswith("multipart/byteranges"):
        raise RangesIgnoredError(
            "the server answers a request for one range with multipart/byteranges, against RFC 9110"
        )
    told = headers.get(b"content-range", "none")
    # Some servers write `bytes=0-9/10`, or more spaces.
    found = _CONTENT_RANGE.match(told)
    if found is None or found[1] != str(span):
        raise WrongRangeError(tr("asked for bytes {span}, got {told!r}", span=span, told=told[:80]))


def _seconds_until(told: str) -> float | None:
    """What Retry-After says (RFC 9110, 10.2.3): seconds, or a date."""
    if told.isascii() and told.isdigit():
        return float(told[:9])
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  rarely needed, and p2pcloopd starts sooner

    try:
        then = parsedate_to_datetime(told)
    except (ValueError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """Tell every error as ours, and of which URL it is."""
    try:
        yield
    except (NotHereError, UnreachableError, FormatError) as err:
        if str(err).startswith(url):
            raise
        told = type(err)(f"{url}: {err}", hint=err.hint)
        if isinstance(told, OverloadedError) and isinstance(err, OverloadedError):
            told.after = err.after
        raise told from err
    except trio.TooSlowError as err:
        raise UnreachableError(tr("{url}: no answer in time", url=url)) from err
    except h11.RemoteProtocolError as err:
        raise FormatError(tr("{url}: that is no HTTP: {err}", url=url, err=err)) from err
    except trio.BrokenResourceError as err:
        raise UnreachableError(
            tr("{url}: {cause}", url=url, cause=err.__cause__ or tr("the connection broke"))
        ) from err
    except OSError as err:
        raise UnreachableError(tr("{url}: {why}", url=url, why=err.strerror or err)) from err
