"""A display in a browser: who gets in, what there is to see, and the bytes of a WebSocket."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from p2pcloop.errors import NeedsPackageError
from p2pcloopd.guest.display import web
from p2pcloopd.guest.display.web import link, new_token, page_files, serve_web
from tests.support.waiting import BOUND
from tests.support.web_socket import BrowserSocket

pytestmark = pytest.mark.interop

NOISE = bytes(range(256)) * 1000


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The link of a web server whose VNC server echoes."""
    with socket.create_server(("127.0.0.1", 0)) as pages:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, echoing, 0)
            port = listeners[0].socket.getsockname()[1]
            token = new_token()
            nursery.start_soon(serve_web, pages, token, ("127.0.0.1", port))
            with trio.fail_after(BOUND):
                yield link(pages.getsockname(), token, "secret")
            nursery.cancel_scope.cancel()


async def echoing(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def ask(url: str, request: str) -> str:
    """What the server answers to a request, until it hangs up."""
    parts = urlsplit(url)
    text = f"{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    async with await trio.open_tcp_stream(str(parts.hostname), parts.port or 0) as stream:
        await stream.send_all(text.encode())
        answer = b""
        async for data in stream:
            answer += data
        return answer.decode("latin-1")


async def test_pages_are_there_with_the_token_alone() -> None:
    async with served() as url:
        path = urlsplit(url).path
        token = path.split("/")[1]
        assert len(token) >= 22, "128 bits"
        page = await ask(url, f"GET {path}?x=1")
        assert page.startswith("HTTP/1.1 200 ")
        assert "Content-Type: text/html" in page
        assert "noVNC" in page
        assert "Referrer-Policy: no-referrer" in page
        script = await ask(url, f"HEAD /{token}/core/rfb.js")
        assert "javascript" in script
        assert script.endswith("\r\n\r\n")
        for other in (
            *("/", "/vnc.html", f"/{token}", f"/{token}/", f"/{token[:-1]}/vnc.html", "//vnc.html"),
            *(f"/{token}/../../../etc/passwd", f"/{token}/%2e%2e/passwd", f"/{token}//etc/passwd"),
        ):
            assert (await ask(url, f"GET {other}")).startswith("HTTP/1.1 404 "), other
        assert (await ask(url, f"POST {path}")).startswith("HTTP/1.1 405 ")
        assert (await ask(url, "nonsense")) == ""
        # The password stands where no browser sends it.
        assert "secret" in urlsplit(url).fragment


async def test_a_web_socket_carries_bytes_both_ways() -> None:
    async with served() as url:
        answer = await trio.to_thread.run_sync(round_trip, url)
        assert b"Sec-WebSocket-Protocol: binary" in answer
        token = urlsplit(url).path.split("/")[1]
        assert await ask(url, f"GET /{token}/rfb") == "", "no WebSocket was asked for"
        wrong = url.replace(f"path={token}", f"path={token[::-1]}")
        refused = await trio.to_thread.run_sync(opened, wrong)
        assert refused.startswith(b"HTTP/1.1 404 ")


async def test_idle_connections_take_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user of this machine may connect."""
    monkeypatch.setattr(web, "_MAX_CONNECTIONS", 3)
    async with served() as url, AsyncExitStack() as stack:
        parts = urlsplit(url)
        place = str(parts.hostname), parts.port or 0
        first, *_ = [
            await stack.enter_async_context(await trio.open_tcp_stream(*place)) for _ in range(12)
        ]
        before = descriptors()
        # The server could take one more each time that it answers.
        for _ in range(20):
            await first.send_all(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await first.receive_some(1000)).startswith(b"HTTP/1.1 404 ")
        # It has a copy of the listener, too.
        assert descriptors() <= before + 1 + 3


async def test_a_browser_that_takes_no_answer_keeps_no_other_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "_MAX_CONNECTIONS", 1)
    monkeypatch.setattr(web, "_TAKE_SECONDS", 0.1)
    files = page_files()
    longest = max(files, key=lambda name: files[name].stat().st_size)
    async with served() as url:
        parts = urlsplit(url)
        request = f"GET /{parts.path.split('/')[1]}/{longest} HTTP/1.1\r\nHost: h\r\n\r\n"
        async with await trio.open_tcp_stream(str(parts.hostname), parts.port or 0) as stream:
            await stream.send_all(request.encode() * 200)  # more than fits into a connection
            assert (await ask(url, "GET /")).startswith("HTTP/1.1 404 ")


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def opened(url: str) -> bytes:
    """The answer to the request for a WebSocket."""
    browser = BrowserSocket(url)
    browser.close()
    return browser.answer


def round_trip(url: str) -> bytes:
    browser = BrowserSocket(url)
    try:
        assert browser.answer.startswith(b"HTTP/1.1 101 ")
        for start in range(0, len(NOISE), 50_000):
            browser.sendall(NOISE[start : start + 50_000])
        received = b""
        while len(received) < len(NOISE):
            received += browser.recv(1 << 16)
        assert received == NOISE
        return browser.answer
    finally:
        browser.close()


def test_the_package_of_missing_pages_is_named(tmp_path: Path) -> None:
    with pytest.raises(NeedsPackageError) as caught:
        page_files(tmp_path)
    assert "apt-get install novnc" in str(caught.value.hint)
