"""A guest's display in a browser: noVNC's pages, and a WebSocket that leads to the VNC server.

noVNC (Debian's package novnc) is a VNC viewer in JavaScript. Every path begins with a random token,
which the link alone has. Without it this server tells nothing, not even which files it has. So
neither other users of this machine nor pages of other sites in the user's browser get in.
"""

from __future__ import annotations

import mimetypes
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import h11
import trio

from p2pcloop.errors import FormatError, NeedsPackageError
from p2pcloop.protocol import websocket
from p2pcloop.words import tr
from p2pcloopd.accepting import accept
from p2pcloopd.entry import plain_errors

PAGES = Path("/usr/share/novnc")
_PAGE, _SOCKET = "vnc.html", "rfb"
_TOKEN_BYTES = 16
_CHUNK = 1 << 16
_MAX_HEADER = 16 << 10
_MAX_CONNECTIONS = 64
_IDLE_SECONDS = 30
_TAKE_SECONDS = 30
"""Until a browser has taken an answer, or what a VNC server said before it went."""

_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""What a browser that has hung up, or that takes nothing, leads to."""

Address = tuple[str, int]


def new_token() -> str:
    """Return what the link's path begins with."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def page_files(root: Path = PAGES) -> dict[str, Path]:
    """Return noVNC's files by their paths in a link.

    Raises:
        NeedsPackageError: it is not installed.
    """
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    if _PAGE not in files:
        raise NeedsPackageError(
            tr("noVNC is not installed: there is no {root}", root=root / _PAGE),
            hint="apt-get install novnc, or take `--display vnc`",
        )
    return files


def link(address: Address, token: str, password: str) -> str:
    """Return the link that opens a display. What stands behind its `#` never leaves the browser."""
    host, port = address
    options = f"autoconnect=true&resize=scale&path={token}/{_SOCKET}&password={password}"
    return f"http://{host}:{port}/{token}/{_PAGE}#{options}"


async def serve_web(listener: socket.socket, token: str, vnc: Address) -> None:
    """Serve browsers until cancelled.

    Args:
        listener: they connect there; it stays open at the end.
        token: of the link.
        vnc: where the VNC server listens.
    """
    files = await trio.to_thread.run_sync(page_files)
    room = trio.Semaphore(_MAX_CONNECTIONS)
    copy = listener.dup()
    copy.setblocking(False)

    async def serve(client: trio.socket.SocketType) -> None:
        try:
            async with trio.SocketStream(client) as stream:
                with suppress(*_GONE):
                    await _Connection(stream, token, files, vnc).run()
        finally:
            room.release()

    with trio.socket.from_stdlib_socket(copy) as served:
        async with trio.open_nursery() as nursery:
            while True:
                # Before it accepts: any user may connect, and descriptors are few.
                await room.acquire()
                client = await accept(served)
                nursery.start_soon(serve, client)


class _Connection:
    """One connection of a browser."""

    def __init__(
        self, stream: trio.SocketStream, token: str, files: Mapping[str, Path], vnc: Address
    ) -> None:
        self._stream = stream
        self._token = token.encode()
        self._files = files
        self._vnc = vnc
        self._sending = trio.Lock()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADER)

    async def run(self) -> None:
        """Answer requests until the browser, or an error, ends the connection."""
        try:
            while (request := await self._next_request()) is not None:
                path = self._path(request.target)
                if path == _SOCKET:
                    await self._become_web_socket(request)
                    return
                await self._answer(request, path)
                if self._http.our_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except (h11.ProtocolError, FormatError, ValueError):
            # It breaks the rules of HTTP, or of WebSockets (ValueError: by h11 up to 0.14).
            return

    def _path(self, target: bytes) -> str | None:
        """What stands behind the token; None if the token is wrong."""
        token, _, path = target.partition(b"?")[0].removeprefix(b"/").partition(b"/")
        return path.decode("latin-1") if secrets.compare_digest(token, self._token) else None

    async def _next_request(self) -> h11.Request | None:
        """The next request, without its body; None at the connection's end."""
        request: h11.Request | None = None
        with trio.move_on_after(_IDLE_SECONDS):
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._stream.receive_some(_CHUNK))
                elif isinstance(event, h11.Request):
                    request = event
                    if self._path(request.target) == _SOCKET:
                        return request
                elif isinstance(event, h11.EndOfMessage):
                    return request
                elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                    return None
        return None

    async def _answer(self, request: h11.Request, path: str | None) -> None:
        file = self._files.get(path) if path is not None else None
        status, body, kind = 404, b"there is nothing here\n", "text/plain"
        if request.method not in (b"GET", b"HEAD"):
            status, body = 405, b"only GET\n"
        elif file is not None:
            status, body = 200, await trio.Path(file).read_bytes()
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = [
            *(("Content-Type", kind), ("Content-Length", str(len(body)))),
            *(("Referrer-Policy", "no-referrer"), ("X-Frame-Options", "DENY")),
            *(("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")),
        ]
        data = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        if request.method != b"HEAD":
            data += self._http.send(h11.Data(data=body)) or b""
        with trio.fail_after(_TAKE_SECONDS):
            await self._stream.send_all(data + (self._http.send(h11.EndOfMessage()) or b""))

    async def _become_web_socket(self, request: h11.Request) -> None:
        """Carry the bytes of a WebSocket to the VNC server and back.

        Raises:
            FormatError: the request, or what follows, is no WebSocket's.
        """
        headers = dict(request.headers)
        answer = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        answer.append(("Sec-WebSocket-Accept", websocket.accept_key(headers).decode()))
        if b"binary" in headers.get(b"sec-websocket-protocol", b"").replace(b" ", b"").split(b","):
            answer.append(("Sec-WebSocket-Protocol", "binary"))
        server = await trio.open_tcp_stream(*self._vnc)
        async with server:
            response = h11.InformationalResponse(status_code=101, headers=answer)
            await self._stream.send_all(self._http.send(response) or b"")
            with plain_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._to_browser, server, nursery.cancel_scope)
                    await self._to_server(server)
                    nursery.cancel_scope.cancel()

    async def _to_server(self, server: trio.SocketStream) -> None:
        reader = websocket.WebSocketReader()
        data = self._http.trailing_data[0]
        while not reader.closed:
            stream, answer = reader.feed(data)
            try:
                await server.send_all(stream)
            except trio.BrokenResourceError:
                # It has gone. `_to_browser` carries what it said before, and ends this.
                await trio.sleep(_TAKE_SECONDS)
                return
            await self._send(answer)
            data = b"" if reader.closed else await self._stream.receive_some(_CHUNK)
            if not data:
                return

    async def _to_browser(self, server: trio.SocketStream, joined: trio.CancelScope) -> None:
        while data := await server.receive_some(_CHUNK):
            await self._send(websocket.encode_bytes(data))
        await self._send(websocket.encode_close())
        joined.cancel()

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)
