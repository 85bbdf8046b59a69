"""The HTTP server: what it answers, and what it refuses, byte for byte over real sockets."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from p2pcloop.errors import BusyError, NotHereError, UsageError
from p2pcloopd.http import server as http_server
from p2pcloopd.http.server import File, open_http_listener, serve_http
from p2pcloopd.http.wire import MAX_HEADER, Pace, Wire
from tests.support.waiting import BOUND

TOO_LONG = MAX_HEADER + http_server.RECEIVE_SIZE
CONTENT = bytes(i * 7 % 256 for i in range(1000))


@dataclass
class Part:
    """A file of which the bytes of `present` are here."""

    data: bytes = CONTENT
    present: range = range(1000)
    media_type: str = "application/octet-stream"
    lasting: bool = True
    etag: str | None = "tag"
    modified: int | None = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
    gone: bool = False
    gone_from: int = 1 << 62
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    def here(self, offset: int, length: int) -> bool:
        return not length or (offset in self.present and offset + length - 1 in self.present)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        if self.gone or offset >= self.gone_from:
            raise NotHereError("it was let go of")
        return self.data[offset : offset + length]


@dataclass
class Files:
    """A site of files by their paths; each may be asked for by POST, too."""

    files: dict[str, File]
    finds: int = 0

    def methods(self, path: str) -> tuple[str, ...]:
        return ("POST",) if path == "post" else ("GET", "HEAD") if path in self.files else ()

    async def find(self, path: str) -> File | None:
        self.finds += 1
        return self.files.get(path)

    async def post(self, path: str) -> File | None:
        return self.files.get(path)


@dataclass
class Server:
    port: int
    site: Files
    wire: Wire

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, request: str) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """Send a request, have the connection closed after it; status, headers and body."""
        async with await self.connect() as stream:
            await stream.send_all(request.encode("latin-1"))
            await stream.send_eof()
            return split(await read_all(stream))

    async def get(self, path: str, *headers: str) -> tuple[bytes, dict[bytes, bytes], bytes]:
        return await self.ask("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]))


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(BOUND):
        while more := await stream.receive_some():
            data += more
    return data


def split(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    return first, {name.lower(): value for name, value in headers.items()}, body


@asynccontextmanager
async def serving(rate: int = 0, **files: File) -> AsyncIterator[Server]:
    listener = await open_http_listener("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    wire = Wire()
    site = Files(files)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_http, [listener], site, wire, Pace(rate))
        yield Server(port, site, wire)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENETDOWN, errno.ECONNABORTED])
async def test_a_connection_that_cannot_be_taken_ends_no_server(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take, errors = http_server._take, [number, number]

    def fail(listening: socket.socket) -> trio.socket.SocketType:
        if errors:
            raise OSError(errors.pop(), "not now")
        return take(listening)

    monkeypatch.setattr(http_server, "_take", fail)
    async with serving(file=Part()) as server:
        status, _, body = await server.get("/file")
        assert (status, body) == (b"HTTP/1.1 200 OK", CONTENT)
    assert not errors
    assert len(caplog.records) == (number == errno.EMFILE)


async def test_a_file_is_given_whole() -> None:
    async with serving(file=Part()) as server:
        status, headers, body = await server.get("/file")
    assert status == b"HTTP/1.1 200 OK"
    assert body == CONTENT
    assert headers[b"content-length"] == b"1000"
    assert headers[b"accept-ranges"] == b"bytes"
    assert headers[b"content-type"] == b"application/octet-stream"


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=990-", 990, 999),
        ("bytes=-10", 990, 999),
        ("bytes=-5000", 0, 999),
        ("bytes=900-5000", 900, 999),
    ],
)
async def test_a_range_is_given_exactly(wanted: str, first: int, last: int) -> None:
    async with serving(file=Part()) as server:
        status, headers, body = await server.get("/file", f"Range: {wanted}")
    assert status == b"HTTP/1.1 206 Partial Content"
    assert headers[b"content-range"] == b"bytes %d-%d/1000" % (first, last)
    assert body == CONTENT[first : last + 1]


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-1001", "bytes=-0"])
async def test_a_range_outside_is_refused(wanted: str) -> None:
    async with serving(file=Part()) as server:
        status, headers, _ = await server.get("/file", f"Range: {wanted}")
    assert status.split()[1] == b"416"
    assert headers[b"content-range"] == b"bytes */1000"


async def test_only_what_is_here_is_given() -> None:
    async with serving(file=Part(present=range(100, 200))) as server:
        status, _, body = await server.get("/file", "Range: bytes=100-199")
        assert (status.split()[1], body) == (b"206", CONTENT[100:200])
        for wanted in ("Range: bytes=99-110", "Range: bytes=190-200", "X: whole"):
            status, _, body = await server.get("/file", wanted)
            assert (status.split()[1], body) == (b"404", b"Not Found\n")


async def test_what_goes_away_half_way_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "PART_SIZE", 100)
    part = Part(gone=True)
    async with serving(file=part) as server:
        status, headers, body = await server.get("/file")
        assert (status.split()[1], body) == (b"404", b"Not Found\n")
        part.gone = False
        assert (await server.get("/file"))[2] == CONTENT
        assert part.reads[1:] == [(at, 100) for at in range(0, 1000, 100)]
        part.gone_from = 500
        status, headers, body = await server.get("/file")
        assert (status.split()[1], headers[b"content-length"]) == (b"200", b"1000")
        assert body == CONTENT[:500]


async def test_head_says_what_get_would_and_no_more() -> None:
    async with serving(file=Part()) as server:
        status, headers, body = await server.ask("HEAD /file HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status.split()[1], headers[b"content-length"], body) == (b"200", b"1000", b"")
        status, _, body = await server.ask("HEAD /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status.split()[1], body) == (b"404", b"")
    assert isinstance(server.site.files["file"], Part)
    assert not server.site.files["file"].reads


async def test_a_connection_is_used_again() -> None:
    request = b"GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n"
    async with serving(file=Part()) as server, await server.connect() as stream:
        await stream.send_all(request + request)
        await stream.send_eof()
        answers = await read_all(stream)
    assert answers.count(b"HTTP/1.1 206") == 2
    assert answers.count(CONTENT[:10]) == 2


def one_file() -> Files:
    return Files({"file": Part()})


async def test_who_says_nothing_is_let_go(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(b"GET /file HT")
    begun = trio.current_time()
    await http_server._Connection(theirs, one_file(), Pace(0)).run()
    assert trio.current_time() - begun == http_server.IDLE_SECONDS


async def test_who_takes_nothing_is_let_go(autojump_clock: MockClock) -> None:
    ours, theirs = lockstep_stream_pair()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(trio.TooSlowError):
            await http_server._Connection(theirs, one_file(), Pace(0)).run()
    assert trio.current_time() - begun == http_server.TAKE_SECONDS


async def test_one_connection_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)
    async with serving(file=Part()) as server, await server.connect() as first:
        await first.send_all(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        await first.receive_some(10)
        async with await server.connect() as second:
            assert (await read_all(second)).startswith(b"HTTP/1.1 503 ")
        await first.aclose()
        with trio.fail_after(BOUND):
            while not (await server.get("/file"))[0].endswith(b"OK"):  # noqa: ASYNC110  no event tells
                await trio.sleep(0.01)


async def test_bytes_are_counted_with_their_headers() -> None:
    async with serving(file=Part()) as server:
        await server.get("/file")
    assert 1000 + 100 < server.wire.sent < 2000
    assert 20 < server.wire.received < 1000


async def test_the_rate_is_kept(autojump_clock: MockClock) -> None:
    pace = Pace(1000)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(pace.claim, 1000)
    assert trio.current_time() - begun == pytest.approx(5)


async def test_addresses_that_cannot_be_listened_on() -> None:
    listener = await open_http_listener("127.0.0.1", 0)
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(BusyError, match=re.escape(f"127.0.0.1:{port}")):
            await open_http_listener("127.0.0.1", port, "another one")
    with pytest.raises(UsageError, match=re.escape("192.0.2.1:80")):
        await open_http_listener("192.0.2.1", 80)


@pytest.mark.parametrize("digits", [20, 21, 5000])
async def test_a_length_of_many_digits_is_refused(digits: int) -> None:
    async with serving(file=Part()) as server:
        status, _, _ = await server.get("/file", f"Content-Length: {'9' * digits}")
        assert status.split()[1] in (b"400", b"413")
        assert (await server.get("/file"))[2] == CONTENT


async def test_a_length_that_cannot_be_computed_with_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As h11 up to 0.14 fails at 5000 digits."""
    next_event = h11.Connection.next_event

    def fail(http: h11.Connection) -> object:
        event = next_event(http)
        if isinstance(event, h11.Request) and event.target == b"/long":
            raise ValueError("Exceeds the limit (4300 digits) for integer string conversion")
        return event

    monkeypatch.setattr(h11.Connection, "next_event", fail)
    async with serving(file=Part()) as server:
        assert (await server.get("/long"))[0].startswith(b"HTTP/1.1 400 ")
        assert (await server.get("/file"))[2] == CONTENT


async def test_a_bug_ends_one_connection_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Files, path: str) -> File | None:
        if path == "bug":
            raise ZeroDivisionError
        return Part()

    monkeypatch.setattr(Files, "find", fail)
    async with serving(file=Part(), bug=Part()) as server:
        async with await server.connect() as stream:
            await stream.send_all(b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await read_all(stream) == b""
        assert (await server.get("/file"))[2] == CONTENT
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("second", ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\0"])
async def test_nonsense_after_head_is_refused_like_any(second: str) -> None:
    """What was asked for before says nothing of how a refusal is framed."""
    async with serving(file=Part()) as server:
        _, _, rest = await server.ask(f"HEAD /file HTTP/1.1\r\nHost: x\r\n\r\n{second}")
        status, headers, body = split(rest)
        assert status.startswith(b"HTTP/1.1 400 ")
        assert len(body) == int(headers[b"content-length"])
        assert (await server.get("/file"))[2] == CONTENT
