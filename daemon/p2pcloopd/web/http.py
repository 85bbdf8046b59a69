"""HTTP for the page of one user on this machine: who may ask, and answers that end or go on.

Every path begins with a token, which the printed URL alone has. Without it nothing is told. The
header Host must name this machine, so that no other name can be made to lead here (DNS rebinding).
A POST must come from this page itself. There are no cookies, so no other page can use them.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from urllib.parse import parse_qs, unquote

import h11
import trio

from p2pcloop.errors import FormatError, P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.text import to_json
from p2pcloopd import accepting
from p2pcloopd.entry import plain_errors
from p2pcloopd.http.semantics import Headers, fields
from p2pcloopd.http.wire import MAX_HEADER, next_event
from p2pcloopd.web.words import language_of, said

MAX_BODY = 64 << 10
MAX_CONNECTIONS = 64
IDLE_SECONDS = 30
TAKE_SECONDS = 30
_RECEIVE = 16 << 10

JSON = "application/json"
POLICY = "; ".join(
    [
        "default-src 'self'",
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "object-src 'none'"),
    ]
)
"""Content-Security-Policy: nothing from elsewhere, and no script or style inside of the page."""

_ALWAYS = [
    ("Content-Security-Policy", POLICY),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),  # the address has the token
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
]


_log = logging.getLogger(__name__)

Push = Callable[[bytes], Awaitable[None]]
"""Sends a part of an answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of one who may ask.

    Attributes:
        method: GET or POST.
        path: what stands behind the token, without its first slash, decoded.
        query: the first value of each name.
        body: of a POST.
        language: what texts are shown in, as `language_of` tells.
    """

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back.

    Attributes:
        body: all of it; or what sends its parts with time, until the browser goes.
        kind: for the header Content-Type.
    """

    body: bytes | Callable[[Push], Awaitable[None]]
    kind: str = JSON
    status: HTTPStatus = HTTPStatus.OK


Handler = Callable[[Asked], Awaitable[Answer | None]]
"""Answers a request; None: nothing is at that path. A `P2pcloopError` is told to the asker."""


class Viewers:
    """Counts connections, to tell when the last one has gone."""

    def __init__(self) -> None:
        self.open = 0
        self._changed = trio.Event()

    def count(self, step: int) -> None:
        """Note that one came (1) or went (-1)."""
        self.open += step
        self._changed.set()
        self._changed = trio.Event()

    async def wait_gone(self, seconds: float) -> None:
        """Return once there has been no connection for so long."""
        while True:
            changed = self._changed
            with trio.move_on_after(float("inf") if self.open else seconds) as waited:
                await changed.wait()
            if waited.cancelled_caught:
                return


async def serve(
    listener: trio.SocketListener,
    token: str,
    hosts: Collection[str],
    handler: Handler,
    viewers: Viewers,
) -> None:
    """Serve browsers until cancelled.

    Args:
        token: of the URL.
        hosts: the values of the header Host that are right.
    """
    room = trio.Semaphore(MAX_CONNECTIONS)

    async def serve_one(stream: trio.SocketStream) -> None:
        viewers.count(1)
        try:
            async with room, stream:
                await _Connection(stream, token, hosts, handler).run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # it hung up, or takes nothing
        except* P2pcloopError as err:
            _log.warning("an answer is broken off: %s", err.exceptions[0])
        except* Exception:
            _log.exception("a bug ends a connection of the web page, and no other")
        finally:
            viewers.count(-1)

    await accepting.serve(serve_one, [listener])


class _Connection:
    """One connection of a browser."""

    def __init__(
        self, stream: trio.SocketStream, token: str, hosts: Collection[str], handler: Handler
    ) -> None:
        self._stream = stream
        self._token = token.encode()
        self._hosts = hosts
        self._handler = handler
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)

    async def run(self) -> None:
        """Answer requests until the browser, or an error, ends the connection."""
        try:
            while (received := await self._next()) is not None:
                request, body = received
                await self._send(await self._answer(request, body), request.method == b"HEAD")
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError:
            return

    async def _next(self) -> tuple[h11.Request, bytes] | None:
        """The next request, with its body; None at the connection's end."""
        request: h11.Request | None = None
        body = b""
        with trio.move_on_after(IDLE_SECONDS):
            while True:
                event = next_event(self._http)
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._stream.receive_some(_RECEIVE))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > MAX_BODY:
                        return None
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None, "h11 tells the request first"
                    return request, body
                else:
                    return None
        return None

    async def _answer(self, request: h11.Request, body: bytes) -> Answer:
        headers = fields(request.headers)
        host = headers.get("host", "")
        if host not in self._hosts:
            return _refusal(HTTPStatus.MISDIRECTED_REQUEST)
        target, _, query = request.target.decode("latin-1").partition("?")
        token, slash, path = target.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode("latin-1"), self._token) or not slash:
            return _refusal(HTTPStatus.NOT_FOUND)
        method = request.method.decode("ascii")
        if method not in ("GET", "HEAD", "POST"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        if method == "POST" and not _is_our_own(headers, host):
            return _refusal(HTTPStatus.FORBIDDEN)
        named = {name: values[0] for name, values in parse_qs(query).items()}
        language = language_of(headers.get("accept-language", ""))
        asked = Asked("POST" if method == "POST" else "GET", unquote(path), named, body, language)
        try:
            with plain_errors():
                return await self._handler(asked) or _refusal(HTTPStatus.NOT_FOUND)
        except P2pcloopError as err:
            hint = None if err.hint is None else said(err.hint, language)
            told = {"error": said(err.message, language), "hint": hint, "class": type(err).__name__}
            usage = isinstance(err, FormatError)
            status = HTTPStatus.BAD_REQUEST if usage else HTTPStatus.CONFLICT
            return Answer(to_json(told).encode(), status=status)

    async def _send(self, answer: Answer, head_only: bool) -> None:
        headers = [*_ALWAYS, ("Content-Type", answer.kind)]
        whole = answer.body if isinstance(answer.body, bytes) else None
        if whole is None:
            headers.append(("Connection", "close"))
        else:
            headers.append(("Content-Length", str(len(whole))))
        response = h11.Response(status_code=answer.status, headers=headers)
        data = self._http.send(response) or b""
        if whole is not None:
            body = b"" if head_only else self._http.send(h11.Data(data=whole)) or b""
            await self._push(data + body + (self._http.send(h11.EndOfMessage()) or b""))
            return
        assert not isinstance(answer.body, bytes), "it comes in parts"
        if head_only:
            await self._push(data + (self._http.send(h11.EndOfMessage()) or b""))
            return
        await self._push(data)

        async def push(part: bytes) -> None:
            await self._push(self._http.send(h11.Data(data=part)) or b"")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_for_end, nursery.cancel_scope)
            await answer.body(push)
            await self._push(self._http.send(h11.EndOfMessage()) or b"")
            nursery.cancel_scope.cancel()

    async def _push(self, data: bytes) -> None:
        with trio.fail_after(TAKE_SECONDS):
            await self._stream.send_all(data)

    async def _wait_for_end(self, scope: trio.CancelScope) -> None:
        """End an answer in parts once the browser has gone; what it sends meanwhile is nothing."""
        while await self._stream.receive_some(_RECEIVE):
            pass
        scope.cancel()


def _is_our_own(headers: Headers, host: str) -> bool:
    """Whether a POST comes from this page: by its Origin, and in a form that no plain form has."""
    if headers.get("origin") != f"http://{host}":
        return False
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    return headers.get("content-type", "").partition(";")[0].strip() == JSON


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(f"{status.phrase}\n".encode(), "text/plain", status)
