"""The HTTP client against real servers, those that misbehave included."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import h11
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pcloop.errors import FormatError, NotHereError, P2pcloopError, UnreachableError
from p2pcloopd.http import client as http_client
from p2pcloopd.http.client import (
    MAX_KEPT,
    MAX_REDIRECTS,
    HttpClient,
    OverloadedError,
    RangesIgnoredError,
    Span,
    WrongRangeError,
)
from p2pcloopd.http.wire import CountedStream, Pace, Wire
from tests.support.ports import free_port
from tests.support.static_server import Fault, busybox_httpd, misbehaving, nginx, python_http_server

CONTENT = bytes(i * 11 % 253 for i in range(100_000))
SPAN = Span(1000, 5000)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path


async def test_a_span_is_got_exactly_and_the_connection_kept(
    directory: Path, client: HttpClient
) -> None:
    with nginx(directory) as web:
        for _ in range(3):
            found = await client.get_span(f"{web.url}file", SPAN)
            assert found == CONTENT[1000:6000]
        assert await client.get(f"{web.url}file", len(CONTENT)) == CONTENT
        asked = web.requests()
    assert [(each.range, each.status, each.sent) for each in asked] == [
        *[("bytes=1000-5999", 206, 5000)] * 3,
        ("", 200, len(CONTENT)),
    ]
    assert len(client._idle) == 1
    data = 3 * 5000 + len(CONTENT)
    assert data < client.wire.received < 1.1 * data
    assert 4 * 100 < client.wire.sent < 0.1 * data


async def test_what_comes_keeps_to_a_rate(directory: Path, client: HttpClient) -> None:
    claimed = []

    class Counting(Pace):
        async def claim(self, size: int) -> None:
            claimed.append(size)
            await super().claim(size)

    client.pace = Counting(100_000_000)
    with nginx(directory) as web:
        assert await client.get(f"{web.url}file", len(CONTENT)) == CONTENT
    assert len(CONTENT) < sum(claimed) < len(CONTENT) + 2000, "the header, too"


async def test_servers_that_close_each_connection_do_as_well(
    directory: Path, client: HttpClient
) -> None:
    with busybox_httpd(directory) as url:
        for _ in range(3):
            assert await client.get_span(f"{url}file", SPAN) == CONTENT[1000:6000]
    assert not client._idle


@pytest.mark.parametrize("at", ["rest", "the next request"])
async def test_a_kept_connection_that_is_hung_up_on_is_replaced(
    client: HttpClient, at: str
) -> None:
    """As by a server that is started anew, or tires of waiting."""
    hung_up = trio.Event()
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served
        served += 1
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab")
            if at == "the next request":
                await stream.receive_some()
        hung_up.set()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/x"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        for count in (1, 2, 3):
            assert await client.get(url, 2) == b"ab"
            if at == "rest":
                await hung_up.wait()
            assert served == count
        nursery.cancel_scope.cancel()


async def test_a_server_that_sends_more_than_it_announced(client: HttpClient) -> None:
    """What is too much is not taken for the beginning of the next answer."""

    async def serve(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab and more")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/x"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        for _ in range(3):
            assert await client.get(url, 2) == b"ab"
        nursery.cancel_scope.cancel()


async def test_many_requests_at_once_after_the_server_was_started_anew(
    client: HttpClient,
) -> None:
    """Each finds connections that were hung up on; one and the same was taken twice."""
    port = free_port()
    for _ in range(2):
        async with answering_together(port, 4) as url, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(client.get_span, url, SPAN)


@asynccontextmanager
async def answering_together(port: int, requests: int) -> AsyncIterator[str]:
    """A server that answers once so many have asked, and hangs up on all at its end."""
    waiting, asked = trio.Event(), 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal asked
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                asked += 1
                if asked == requests:
                    waiting.set()
                await waiting.wait()
                await stream.send_all(
                    b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5000\r\n"
                    b"Content-Range: bytes 1000-5999/100000\r\n\r\n" + CONTENT[1000:6000]
                )

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, serve, port, host="127.0.0.1"))
        yield f"http://127.0.0.1:{port}/file"
        nursery.cancel_scope.cancel()


async def test_connections_that_are_kept_are_few(directory: Path, client: HttpClient) -> None:
    with nginx(directory) as web:
        async with trio.open_nursery() as nursery:
            for at in range(2 * MAX_KEPT):
                nursery.start_soon(client.get_span, f"{web.url}file", Span(at, 10))
    assert 0 < len(client._idle) <= MAX_KEPT


WRONG = {
    Fault.NOT_FOUND: (NotHereError, "not there"),
    Fault.SERVER_ERROR: (OverloadedError, "status 500"),
    Fault.HTML: (RangesIgnoredError, "ignores ranges"),
    Fault.IGNORES_RANGE: (RangesIgnoredError, "ignores ranges"),
    Fault.HALF_RANGE: (WrongRangeError, "asked for bytes 1000-5999, got 'bytes 1000-3499/100000'"),
    Fault.CUT_OFF: (UnreachableError, "hung up before the end"),
    Fault.OTHER_RANGE: (WrongRangeError, "asked for bytes 1000-5999, got 'bytes 999-5998/100000'"),
    Fault.TOO_MUCH: (FormatError, "longer than 5000 bytes"),
    Fault.LONG_HEADER: (FormatError, "no HTTP"),
    Fault.REDIRECT: (UnreachableError, "redirects to 'http://127.0.0.1:9/file'"),
    Fault.STALLS: (UnreachableError, "no answer in time"),
    Fault.HANGS: (UnreachableError, "no answer in time"),
}


@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.name)
async def test_a_server_that_misbehaves_is_one_clear_error(
    directory: Path, client: HttpClient, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, says = WRONG[fault]
    with misbehaving(directory, fault) as web:
        with monkeypatch.context() as patch, pytest.raises(P2pcloopError) as caught:
            if fault in (Fault.STALLS, Fault.HANGS):
                patch.setattr(http_client, "SILENCE_SECONDS", 0.1)
            await client.get_span(f"{web.url}file", SPAN)
        assert type(caught.value) is error
        assert str(caught.value).startswith(f"{web.url}file: ")
        assert says in str(caught.value)
        assert str(caught.value).count(web.url) == 1
        assert client.wire.received < 1 << 20
        assert not client._idle
        web.fault = None
        assert await client.get_span(f"{web.url}file", SPAN) == CONTENT[1000:6000]


@asynccontextmanager
async def answering(*answers: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn on one connection, `{url}` being its own URL; and
    what it was asked for, a new connection being noted as "connected"."""
    asked: list[str] = []
    left = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        asked.append("connected")
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                asked.append(data.decode().split()[1])
                await stream.send_all(left.pop(0).format(url=url).encode())

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield url, asked
        nursery.cancel_scope.cancel()


def redirecting(to: str, status: str = "302 Found") -> str:
    return f"HTTP/1.1 {status}\r\nLocation: {to}\r\nContent-Length: 2\r\n\r\nno"


OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("to", ["{url}/real/x", "/real/x", "../real/x"])
async def test_a_redirect_on_the_same_host_is_followed(client: HttpClient, to: str) -> None:
    async with answering(redirecting(to, "308 Permanent Redirect"), OK) as (url, asked):
        assert await client.get(f"{url}/m/x", 2) == b"ok"
        assert asked == ["connected", "/m/x", "/real/x"]


async def test_a_redirect_leaves_the_next_connection_its_time(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is left of the time in which the first answer had to begin."""
    deadlines = []
    connect = http_client._connect

    async def noting(place: http_client._Place, wire: Wire, pace: Pace) -> http_client._Connection:
        deadlines.append(trio.current_effective_deadline())
        return await connect(place, wire, pace)

    monkeypatch.setattr(http_client, "_connect", noting)
    first = "HTTP/1.1 302 Found\r\nLocation: /y\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    async with answering(first, OK) as (url, _):
        assert await client.get(f"{url}/x", 2) == b"ok"
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:9/x",  # another port of the same host: another service
        "http://127.0.0.2/x",
        "http://localhost/x",
        "http://192.168.1.1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/x",
        "//127.0.0.1/x",
        "http://2130706433/x",
        "https://127.0.0.1/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "{url}/x?reboot=1",
        "{url}@192.168.1.1/x",
        "http://[bad/x",
    ],
)
async def test_a_redirect_elsewhere_is_not_followed(client: HttpClient, to: str) -> None:
    async with answering(redirecting(to)) as (url, asked):
        with pytest.raises(P2pcloopError) as caught:
            await client.get(f"{url}/x", 2)
        assert isinstance(caught.value, UnreachableError | FormatError)
        assert asked == ["connected", "/x"]


async def test_redirects_have_an_end(client: HttpClient) -> None:
    async with answering(*[redirecting("/y")] * (MAX_REDIRECTS + 1)) as (url, asked):
        with pytest.raises(UnreachableError, match="again and again"):
            await client.get(f"{url}/x", 2)
        assert asked == ["connected", "/x", *["/y"] * MAX_REDIRECTS]


async def test_plain_http_may_become_tls_on_the_same_host() -> None:
    follow = http_client._follow
    assert follow("http://a.example/m/x", "https://a.example/m/x") == "https://a.example/m/x"
    for there in ("http://a.example/x", "https://b.example/x", "https://a.example:8443/x"):
        with pytest.raises(UnreachableError, match="not followed"):
            follow("https://a.example/x" if there[4] == ":" else "http://a.example/x", there)


@pytest.mark.parametrize(
    ("status", "header", "after"),
    [
        ("503 Service Unavailable", "Retry-After: 7\r\n", 7.0),
        ("429 Too Many Requests", "Retry-After: 0\r\n", 0.0),
        ("429 Too Many Requests", "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n", 0.0),
        ("500 Internal Server Error", "Retry-After: soon\r\n", None),
        ("503 Service Unavailable", f"Retry-After: Thu, 01 Jan {'9' * 30} 00:00:00\r\n", None),
        ("503 Service Unavailable", f"Retry-After: {'9' * 400}\r\n", float(10**9 - 1)),
        ("504 Gateway Timeout", "", None),
    ],
)
async def test_a_server_that_cannot_answer_now_says_until_when(
    client: HttpClient, status: str, header: str, after: float | None
) -> None:
    answer = f"HTTP/1.1 {status}\r\n{header}Content-Length: 2\r\n\r\nno"
    async with answering(answer, OK) as (url, asked):
        with pytest.raises(OverloadedError) as caught:
            await client.get(f"{url}/x", 2)
        assert caught.value.after == after
        assert await client.get(f"{url}/x", 2) == b"ok"
        assert asked == ["connected", "/x", "/x"]  # the connection is kept


async def test_a_server_may_refuse_before_it_is_asked(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = http_client._connect
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def refused(
            place: http_client._Place, wire: Wire, pace: Pace
        ) -> http_client._Connection:
            connection = await connect(place, wire, pace)
            with server.accept()[0] as accepted:
                accepted.sendall(
                    b"HTTP/1.1 503 Full\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
                )
                at_once = struct.pack("ii", 1, 0)
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            return connection

        monkeypatch.setattr(http_client, "_connect", refused)
        with pytest.raises(OverloadedError) as caught:
            await client.get(f"http://127.0.0.1:{server.getsockname()[1]}/x", 2)
        assert caught.value.after == 7


async def test_a_length_of_too_many_digits_is_no_http(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """h11 up to 0.14 takes it, and fails where it computes with it."""

    def fail(_: h11.Connection) -> h11.Event:
        raise ValueError("Exceeds the limit (4300 digits) for integer string conversion")

    async with answering(OK) as (url, _):
        monkeypatch.setattr(h11.Connection, "next_event", fail)
        with pytest.raises(FormatError, match="no HTTP"):
            await client.get(f"{url}/x", 2)


async def test_an_answer_in_parts_to_a_request_for_one_is_no_range(client: HttpClient) -> None:
    multipart = (
        "HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=x\r\n"
        "Content-Length: 2\r\n\r\nno"
    )
    unit = (
        "HTTP/1.1 206 Partial Content\r\nContent-Range: BYTES 0-1/*\r\nContent-Length: 2\r\n\r\nok"
    )
    async with answering(multipart) as (url, _):
        with pytest.raises(RangesIgnoredError, match="multipart"):
            await client.get_span(f"{url}/x", Span(0, 2))
    # RFC 9110, 14.1: units are case-insensitive. The others are common.
    for told in ("BYTES 0-1/*", "bytes=0-1/2", "bytes  0-1/2", "bytes 0-1"):
        async with answering(unit.replace("BYTES 0-1/*", told)) as (url, _):
            assert await client.get_span(f"{url}/x", Span(0, 2)) == b"ok"
    for told in ("bytes 0-11/2", "bytes 00-1/2", "bytes 1-2/3", "lines 0-1/2", "bytes */2", ""):
        async with answering(unit.replace("BYTES 0-1/*", told)) as (url, _):
            with pytest.raises(WrongRangeError):
                await client.get_span(f"{url}/x", Span(0, 2))


async def test_a_whole_file_that_is_the_part_asked_for_is_no_fault(client: HttpClient) -> None:
    async with answering(OK, OK, OK) as (url, _):
        assert await client.get_span(f"{url}/x", Span(0, 2)) == b"ok"
        for other in (Span(0, 1), Span(1, 1)):
            with pytest.raises(RangesIgnoredError):
                await client.get_span(f"{url}/x", other)


async def test_how_fast_a_server_is_does_not_count_the_wait_for_its_answers(
    directory: Path, client: HttpClient
) -> None:
    with nginx(directory, rate=200_000) as web:
        assert client.rate(web.url) is None
        await client.get_span(f"{web.url}file", Span(0, 4000))
        assert client.rate(web.url) is None  # too little to tell
        for _ in range(2):
            await client.get_span(f"{web.url}file", Span(0, len(CONTENT)))
        rate = client.rate(web.url)
        assert rate is not None
        assert 20_000 < rate < 1_000_000


async def test_a_range_behind_the_end_is_told(directory: Path, client: HttpClient) -> None:
    with nginx(directory) as web:
        with pytest.raises(FormatError, match="shorter"):
            await client.get_span(f"{web.url}file", Span(len(CONTENT), 10))
        with pytest.raises(FormatError, match="asked for bytes 99990-100009"):
            await client.get_span(f"{web.url}file", Span(len(CONTENT) - 10, 20))


async def test_a_server_that_ignores_ranges_serves_small_files(
    directory: Path, client: HttpClient
) -> None:
    with python_http_server(directory) as url:
        assert await client.get(f"{url}file", len(CONTENT)) == CONTENT
        with pytest.raises(FormatError, match="ignores ranges"):
            await client.get_span(f"{url}file", SPAN)


async def test_a_whole_file_over_its_limit_is_not_taken(
    directory: Path, client: HttpClient
) -> None:
    with nginx(directory) as web, pytest.raises(FormatError, match="longer than 512"):
        await client.get(f"{web.url}file", 512)


async def test_nobody_there(client: HttpClient) -> None:
    url = f"http://127.0.0.1:{free_port()}/x"
    with pytest.raises(UnreachableError, match=url):
        await client.get(url, 10)
    with pytest.raises(FormatError, match="not a URL"):
        await client.get(f"http://{'a' * 64}.example/x", 10)


async def test_nothing_of_the_environment_is_used(
    directory: Path, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9/")
    with nginx(directory) as web:
        assert await client.get_span(f"{web.url}file", Span(0, 4)) == CONTENT[:4]


# --- TLS ------------------------------------------------------------------------------------------


def make_certificate(directory: Path, address: str) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    certificate, private = directory / "cert.pem", directory / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private


@asynccontextmanager
async def serving_tls(certificate: Path, private: Path) -> AsyncIterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            while await stream.receive_some():
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab")
        except trio.BrokenResourceError:
            pass  # who does not trust us hangs up

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        plain = listeners[0].transport_listener
        assert isinstance(plain, trio.SocketListener)
        port = plain.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"https://127.0.0.1:{port}/x"
        nursery.cancel_scope.cancel()


@pytest.fixture
def _no_context_kept() -> Iterator[None]:
    http_client._tls.cache_clear()
    yield
    http_client._tls.cache_clear()


@pytest.mark.usefixtures("_no_context_kept")
@pytest.mark.parametrize(
    ("named", "trusted", "says"),
    [
        ("127.0.0.1", True, None),
        ("127.0.0.1", False, "self-signed certificate"),
        ("192.0.2.1", True, "IP address mismatch"),
    ],
)
async def test_certificates_are_verified(
    tmp_path: Path,
    client: HttpClient,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    trusted: bool,
    says: str | None,
) -> None:
    certificate, private = make_certificate(tmp_path, named)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serving_tls(certificate, private) as url:
        if says is None:
            assert await client.get(url, 2) == b"ab"
            assert await client.get(url, 2) == b"ab"
            assert client.wire.received > 500  # the handshake is counted, too
        else:
            with pytest.raises(UnreachableError, match=says):
                await client.get(url, 2)


@pytest.mark.usefixtures("_no_context_kept")
async def test_a_request_that_is_cancelled_at_any_step_leaves_nothing_open(
    tmp_path: Path, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, private = make_certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    answers = []
    steps = 0

    async def ask(url: str) -> None:
        answers.append(await client.get(url, 2))

    async with serving_tls(certificate, private) as url:
        while not answers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, url)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            streams = [each for each in gc.get_objects() if isinstance(each, CountedStream)]
            left_open = [each for each in streams if each.socket.fileno() != -1]
            assert len(left_open) == len(client._idle) == len(answers)
            steps += 1
    assert steps > 5
