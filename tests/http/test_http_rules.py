"""The HTTP server against RFC 9110 and 9112, rule by rule, over real sockets."""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack
from email.utils import formatdate, parsedate_to_datetime

import pytest
import trio

from p2pcloopd.http import server as http_server
from p2pcloopd.http.semantics import parse_range, path_of, range_applies
from p2pcloopd.http.wire import MAX_HEADER
from tests.support.waiting import BOUND

from .test_http_server import CONTENT, Part, read_all, serving, split

TOO_LONG = MAX_HEADER + http_server.RECEIVE_SIZE
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"


def request(line: str, *headers: str, host: str = "Host: x") -> str:
    return "\r\n".join([line, *([host] if host else []), *headers, "", ""])


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        # 9110, 8.6 and 9.3.1: content of a GET means nothing, and a length of 0 is none.
        (request("GET /file HTTP/1.1", "Content-Length: 0"), 200),
        (request("GET /file HTTP/1.1", "Content-Length: 3") + "abc", 200),
        (
            request("GET /file HTTP/1.1", "Transfer-Encoding: chunked") + "3\r\nabc\r\n0\r\n\r\n",
            200,
        ),
        (request("GET /file HTTP/1.1", "Content-Length: 3", "Expect: 100-continue") + "abc", 100),
        (request("GET /file HTTP/1.1", "Content-Length: 1000000"), 413),
        (
            request("GET /file HTTP/1.1", "Transfer-Encoding: chunked") + "ffff\r\n" + "x" * 40000,
            413,
        ),
        # 9112, 6.1 to 6.3.
        (request("GET /file HTTP/1.1", "Transfer-Encoding: gzip"), 501),
        (request("GET /file HTTP/1.1", "Content-Length: 1", "Content-Length: 2"), 400),
        (request("GET /file HTTP/1.1", "Content-Length: -1"), 400),
        (request("GET /file HTTP/1.1", "Content-Length: 0", "Transfer-Encoding: chunked"), 400),
        (request("GET /file HTTP/1.0", "Transfer-Encoding: chunked"), 400),
        # 9112, 2.2: an empty line before a request.
        ("\r\n" + request("GET /file HTTP/1.1"), 200),
        ("\r\n\r\n\n" + request("GET /file HTTP/1.1"), 200),
        # 9112, 3.2: forms of the target.
        (request("GET http://x/file HTTP/1.1"), 200),
        (request("GET HTTP://other:81/file?a HTTP/1.1"), 200),
        (request("GET http://x HTTP/1.1"), 404),
        (request("GET http:///file HTTP/1.1"), 400),
        (request("GET http://user@x/file HTTP/1.1"), 400),
        (request("GET ftp://x/file HTTP/1.1"), 400),
        (request("GET file HTTP/1.1"), 400),
        (request("GET * HTTP/1.1"), 400),
        (request("OPTIONS * HTTP/1.1"), 204),
        (request("CONNECT x:80 HTTP/1.1"), 400),
        # 9110, 4.2.2 and 7.1: a query is part of the target, and changes nothing here.
        (request("GET /file?v=1 HTTP/1.1"), 200),
        (request("GET /file? HTTP/1.1"), 200),
        (request("GET /%66ile HTTP/1.1"), 404),  # the site decodes, not the server
        # 9110, 2.5 and 9112, 2.3: versions.
        (request("GET /file HTTP/1.2"), 200),
        (request("GET /file HTTP/1.0", host=""), 200),
        (request("GET /file HTTP/2.0"), 505),
        (request("GET /file HTTP/0.9"), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (request("GET /file HTTP/11.1"), 400),
        (request("GET /file http/1.1"), 400),
        # 9112, 3.2: Host.
        (request("GET /file HTTP/1.1", host=""), 400),
        (request("GET /file HTTP/1.1", "Host: y"), 400),
        (request("GET /file HTTP/1.1", host="Host: a/b"), 400),
        (request("GET /file HTTP/1.1", host="Host: [::1]:80"), 200),
        (request("GET /file HTTP/1.1", host="Host:"), 200),
        # 9110, 9.1 and 15.5.6: methods.
        (request("POST /file HTTP/1.1", "Content-Length: 0"), 405),
        (request("DELETE /file HTTP/1.1"), 405),
        (request("GET /post HTTP/1.1"), 405),
        (request("OPTIONS /file HTTP/1.1"), 204),
        (request("FROBNICATE /file HTTP/1.1"), 501),
        (request("get /file HTTP/1.1"), 501),
        (request("POST /none HTTP/1.1", "Content-Length: 0"), 404),
        # 9110, 10.1.1.
        (request("GET /file HTTP/1.1", "Expect: a-miracle"), 417),
        # 9112, 3 and 5; 6585, 5.
        ("GET /".ljust(TOO_LONG, "x"), 414),
        ("GET /file HTTP/1.1\r\nHost: x\r\nX: ".ljust(TOO_LONG, "x"), 431),
        (request("GET /file HTTP/1.1", "X : y"), 400),
        (request("GET /file HTTP/1.1", "X"), 400),
        ("nonsense\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (request("GET /none HTTP/1.1"), 404),
    ],
)
async def test_a_request_is_answered_as_the_rule_says(asked: str, status: int) -> None:
    async with serving(file=Part()) as server:
        line, headers, _ = await server.ask(asked)
        assert int(line.split()[1]) == status
        assert line.startswith(b"HTTP/1.1 ")
        if status == 405:
            assert headers[b"allow"]
        if status >= 200:
            assert parsedate_to_datetime(headers[b"date"].decode())  # 9110, 6.6.1
        assert (await server.get("/file"))[2] == CONTENT


async def test_after_a_body_the_next_request_is_read() -> None:
    asked = request("POST /file HTTP/1.1", "Content-Length: 3") + "abc\r\n"
    async with serving(file=Part()) as server, await server.connect() as stream:
        await stream.send_all(2 * (asked + request("GET /file HTTP/1.1")).encode())
        await stream.send_eof()
        answers = await read_all(stream)
    found = re.findall(rb"HTTP/1.1 ([0-9]+) ", answers)
    assert found == [b"405", b"200", b"405", b"200"]


async def test_who_waits_to_be_told_to_go_on_is_told() -> None:
    head = request("GET /file HTTP/1.1", "Content-Length: 3", "Expect: 100-continue")
    async with serving(file=Part()) as server, await server.connect() as stream:
        await stream.send_all(head.encode())
        with trio.fail_after(BOUND):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"abc")
        await stream.send_eof()
        assert split(await read_all(stream))[2] == CONTENT


async def test_a_refusal_reaches_who_goes_on_sending() -> None:
    """Closed at once, the system would answer what comes with a reset (RFC 9112, 9.6)."""
    head = request("POST /file HTTP/1.1", "Content-Length: 1000000").encode()
    async with serving(file=Part()) as server, await server.connect() as stream:
        await stream.send_all(head + bytes(200_000))
        with trio.fail_after(BOUND):
            assert (await read_all(stream)).startswith(b"HTTP/1.1 413 ")


async def test_a_file_says_what_it_is_and_when() -> None:
    async with serving(file=Part(), small=Part(lasting=False, etag=None, modified=None)) as server:
        _, headers, _ = await server.get("/file")
        assert headers[b"etag"] == b'"tag"'
        assert headers[b"last-modified"] == DATE.encode()
        assert b"immutable" in headers[b"cache-control"]
        _, part, _ = await server.get("/file", "Range: bytes=0-1")
        same = (b"etag", b"last-modified", b"cache-control")
        assert [part[name] for name in same] == [headers[name] for name in same]  # 9110, 15.3.7
        _, headers, _ = await server.get("/small")
        assert b"etag" not in headers
        assert b"last-modified" not in headers
        assert headers[b"cache-control"] == b"no-store"
        _, headers, _ = await server.get("/none")
        assert headers[b"cache-control"] == b"no-store"  # it may be here in a moment


async def test_a_date_to_come_is_told_as_now() -> None:
    async with serving(file=Part(modified=int(time.time()) + 10_000)) as server:
        _, headers, _ = await server.get("/file")
    assert headers[b"last-modified"] <= headers[b"date"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # 9110, 13.1.1: strong comparison.
        (['If-Match: "tag"'], 200),
        (['If-Match: "a", "tag"'], 200),
        (['If-Match: "a"', 'If-Match: "tag"'], 200),
        (["If-Match: *"], 200),
        (['If-Match: "other"'], 412),
        (['If-Match: W/"tag"'], 412),
        (["If-Match: tag"], 412),
        # 13.1.2: weak comparison.
        (['If-None-Match: "tag"'], 304),
        (['If-None-Match: W/"tag"'], 304),
        (["If-None-Match: *"], 304),
        (['If-None-Match: "a,b" , ,"tag"'], 304),
        (['If-None-Match: "other"'], 200),
        # 13.1.3 and 13.1.4: dates, of three forms; what is none is passed over.
        ([f"If-Modified-Since: {DATE}"], 304),
        ([f"If-Modified-Since: {AFTER}"], 304),
        ([f"If-Modified-Since: {BEFORE}"], 200),
        (["If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT"], 304),
        (["If-Modified-Since: Sun Nov  6 08:49:37 1994"], 304),
        (["If-Modified-Since: yesterday"], 200),
        ([f"If-Unmodified-Since: {DATE}"], 200),
        ([f"If-Unmodified-Since: {BEFORE}"], 412),
        (["If-Unmodified-Since: never"], 200),
        # 13.2.2: which comes first.
        (['If-Match: "tag"', f"If-Unmodified-Since: {BEFORE}"], 200),
        (['If-None-Match: "other"', f"If-Modified-Since: {DATE}"], 200),
        (['If-Match: "other"', 'If-None-Match: "tag"'], 412),
        (['If-None-Match: "tag"', "Range: bytes=0-1"], 304),
        (['If-Match: "other"', "Range: bytes=5000-"], 412),
        # 13.1.5: If-Range.
        (['If-Range: "tag"', "Range: bytes=0-1"], 206),
        (['If-Range: "other"', "Range: bytes=0-1"], 200),
        (['If-Range: W/"tag"', "Range: bytes=0-1"], 200),
        ([f"If-Range: {DATE}", "Range: bytes=0-1"], 206),
        ([f"If-Range: {AFTER}", "Range: bytes=0-1"], 200),
        (["If-Range: nonsense", "Range: bytes=0-1"], 200),
        (['If-Range: "other"', "Range: bytes=5000-"], 200),
        (['If-Range: "tag"'], 200),
    ],
)
async def test_conditions(headers: list[str], status: int) -> None:
    async with serving(file=Part()) as server:
        for method in ("GET", "HEAD"):
            line, told, body = await server.ask(request(f"{method} /file HTTP/1.1", *headers))
            expected = 200 if method == "HEAD" and status == 206 else status
            assert int(line.split()[1]) == expected
            if expected == 304:
                assert (told[b"etag"], body) == (b'"tag"', b"")  # 9110, 15.4.5
                assert b"content-length" not in told


async def test_conditions_of_what_cannot_tell_its_date_or_tag() -> None:
    async with serving(file=Part(etag=None, modified=None)) as server:
        for header, status in [
            ('If-Match: "tag"', b"412"),
            ("If-Match: *", b"200"),
            ('If-None-Match: "tag"', b"200"),
            (f"If-Modified-Since: {AFTER}", b"200"),
            (f"If-Unmodified-Since: {BEFORE}", b"200"),
        ]:
            assert (await server.get("/file", header))[0].split()[1] == status
        assert (await server.get("/none", 'If-None-Match: "x"'))[0].split()[1] == b"404"  # 13.2.1


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("Bytes=0-1", (0, 2)),
        (" bytes = 0-1 ", (0, 2)),
        ("bytes=,0-1,", (0, 2)),
        ("bytes=0-" + "9" * 5000, (0, 1000)),
        ("bytes=" + "9" * 40 + "-", (10**18, 0)),
        ("bytes=-" + "9" * 40, (0, 1000)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=0-1,5-6", None),
        ("bytes=0 - 1", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=\u0661-2", None),
        (None, None),
    ],
)
def test_ranges(wanted: str | None, found: tuple[int, int] | None) -> None:
    assert parse_range(wanted, 1000) == found


def test_ranges_of_nothing() -> None:
    assert parse_range("bytes=0-", 0) == (0, 0)
    assert parse_range("bytes=-0", 0) == (0, 0)
    assert parse_range("bytes=-5", 0) is None


def test_a_date_of_this_second_proves_nothing() -> None:
    date = 1_000_000
    headers = {"if-range": formatdate(date, usegmt=True)}
    assert not range_applies(headers, None, date, now=date + 1)
    assert range_applies(headers, None, date, now=date + 2)


def test_targets() -> None:
    assert path_of("/a/b?c?d") == "a/b"
    assert path_of("//a") == "/a"
    assert path_of("http://h?q") == ""


async def test_many_who_come_at_once_are_all_taken() -> None:
    """Each round of the loop takes all who connected, not one: 200 may be at work in each."""
    asked = request("GET /file HTTP/1.1").encode()
    async with serving(file=Part()) as server:
        with ExitStack() as stack:
            for _ in range(100):  # the system connects them, while the loop stands still
                plain = socket.create_connection(("127.0.0.1", server.port))
                stack.enter_context(plain).sendall(asked)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert server.site.finds == 100
