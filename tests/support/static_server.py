"""Web servers of static files on loopback: three that others wrote, and one that misbehaves.

nginx answers ranges and keeps connections; busybox httpd answers ranges, closes each connection
and calls files without an extension text/html; `python -m http.server` ignores ranges.
"""

from __future__ import annotations

import contextlib
import enum
import re
import shutil
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.ports import free_port, wait_listening
from tests.support.programs import started
from tests.support.threads import running
from tests.support.waiting import BOUND

_LOG_FORMAT = r"$request_method\t$request_uri\t$http_range\t$status\t$body_bytes_sent"


@dataclass(frozen=True)
class Request:
    """What a server was asked for, and its answer.

    Attributes:
        path: as it was sent.
        range: the value of the header Range, or empty.
        status: the answer's.
        sent: bytes of its body.
    """

    method: str
    path: str
    range: str
    status: int
    sent: int


@dataclass(frozen=True)
class Nginx:
    """A running nginx.

    Attributes:
        url: of the directory that it serves; ends in "/".
    """

    url: str
    log: Path

    def requests(self) -> list[Request]:
        """What has been answered so far: nginx logs an answer before it takes another request."""
        with urllib.request.urlopen(f"{self.url}.logged", timeout=BOUND):
            pass
        lines = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [
            Request(method, path, wanted.removeprefix("-"), int(status), int(sent))
            for method, path, wanted, status, sent in lines
        ]


@contextlib.contextmanager
def nginx(directory: Path, *, ranges: bool = True, rate: int = 0) -> Iterator[Nginx]:
    """Serve a directory with nginx.

    Args:
        ranges: if false, it ignores them, as it may (`max_ranges 0`).
        rate: bytes a second and connection, little by little, 0 for no limit.
    """
    port = free_port()
    own = Path(tempfile.mkdtemp(prefix="p2pw-"))
    log = own / "access"
    log.touch()
    (own / "conf").write_text(f"""
        daemon off;
        master_process off;
        pid {own}/pid;
        error_log {own}/errors;
        events {{}}
        http {{
            log_format asked "{_LOG_FORMAT}";
            access_log {log} asked;
            {"" if ranges else "max_ranges 0;"}
            limit_rate {rate};
            {"output_buffers 1 4k;" if rate else ""}
            client_body_temp_path {own}/t; proxy_temp_path {own}/t; fastcgi_temp_path {own}/t;
            uwsgi_temp_path {own}/t; scgi_temp_path {own}/t;
            server {{
                listen 127.0.0.1:{port};
                root {directory};
                location = /.logged {{ access_log off; return 204; }}
            }}
        }}
    """)
    try:
        with started(
            (_sbin("nginx"), "-p", own, "-c", own / "conf", "-e", own / "errors")
        ) as process:
            wait_listening(process, port)
            yield Nginx(f"http://127.0.0.1:{port}/", log)
    finally:
        shutil.rmtree(own)


@contextlib.contextmanager
def busybox_httpd(directory: Path) -> Iterator[str]:
    """Serve a directory with busybox httpd; its URL, which ends in "/"."""
    port = free_port()
    command = ("busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", directory)
    with started(command) as process:
        wait_listening(process, port)
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def python_http_server(directory: Path) -> Iterator[str]:
    """Serve a directory with `python -m http.server`, which ignores ranges; its URL."""
    port = free_port()
    command = (sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", directory, str(port))
    with tempfile.TemporaryFile("w") as log, started(command, stdout=log, stderr=log) as process:
        wait_listening(process, port)
        yield f"http://127.0.0.1:{port}/"


class Fault(enum.Enum):
    """What a server does wrong."""

    NOT_FOUND = "answers 404"
    SERVER_ERROR = "answers 500"
    HTML = "answers 200 and a page of HTML, whatever was asked for"
    IGNORES_RANGE = "answers 200 and the whole file"
    HALF_RANGE = "answers 206 with the first half of the range, and says so"
    CUT_OFF = "answers 206, sends half of what it said, and hangs up"
    STALLS = "answers 206, sends half of what it said, and nothing more"
    HANGS = "takes the request and says nothing"
    OTHER_RANGE = "answers 206 with as many bytes of another place, and says so"
    WRONG_BYTES = "answers 206 with one byte wrong"
    TOO_MUCH = "answers 206 without a length, and sends 64 MiB behind the range"
    LONG_HEADER = "answers 206 with a header of 64 MiB"
    REDIRECT = "answers 302 to the same path of `elsewhere`"


class Misbehaving:
    """A server that does what `fault` says; with None, all is right. Made by `misbehaving`.

    Attributes:
        url: of the directory that it serves; ends in "/".
        fault: may be changed while it runs.
        elsewhere: where a redirect leads; ends in "/".
        requests: (method, path, Range or empty) of each request so far.
    """

    def __init__(self, url: str, fault: Fault | None) -> None:
        self.url = url
        self.fault = fault
        self.elsewhere = "http://127.0.0.1:9/"
        self.requests: list[tuple[str, str, str]] = []


@contextlib.contextmanager
def misbehaving(directory: Path, fault: Fault | None = None) -> Iterator[Misbehaving]:
    """Serve a directory badly while the context lasts, from a thread of this process."""
    ended = threading.Event()

    class Handler(_Handler):
        def answer(self) -> None:
            state.requests.append((self.command, self.path, self.headers.get("Range", "")))
            path = directory / unquote(urlsplit(self.path).path).lstrip("/")
            inside = ".." not in path.parts and path.is_file()
            self.misbehave(state, path.read_bytes() if inside else None, ended)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Misbehaving(f"http://127.0.0.1:{server.server_port}/", fault)
    with running(server):
        try:
            yield state
        finally:
            ended.set()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):  # who is told nonsense may hang up
            self.answer()

    do_HEAD = do_GET  # noqa: N815  http.server's naming

    def answer(self) -> None:
        raise NotImplementedError

    def misbehave(self, state: Misbehaving, data: bytes | None, ended: threading.Event) -> None:
        """Answer one request for a file's content."""
        match state.fault:
            case Fault.HANGS:
                ended.wait()
            case Fault.SERVER_ERROR:
                self.reply(500, b"no")
            case Fault.HTML:
                self.reply(200, b"<html>Please log in</html>", ("Content-Type", "text/html"))
            case Fault.REDIRECT:
                self.reply(302, b"", ("Location", state.elsewhere + self.path.lstrip("/")))
            case Fault.NOT_FOUND:
                self.reply(404, b"no")
            case _ if data is None:
                self.reply(404, b"no")
            case _:
                self.send(state.fault, data, ended)

    def send(self, fault: Fault | None, data: bytes, ended: threading.Event) -> None:
        """Answer one request for a file that is there."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if fault is Fault.IGNORES_RANGE or wanted is None:
            self.reply(200, data)
            return
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if start >= end:
            self.reply(416, b"", ("Content-Range", f"bytes */{len(data)}"))
            return
        if fault is Fault.HALF_RANGE:
            end = start + max(1, (end - start) // 2)
        elif fault is Fault.OTHER_RANGE:
            start, end = (start - 1, end - 1) if start else (start + 1, end + 1)
        body, length = data[start:end], end - start
        if fault is Fault.WRONG_BYTES:
            body = bytes([body[0] ^ 0x40]) + body[1:]
        elif fault in (Fault.CUT_OFF, Fault.STALLS):
            body = body[: length // 2]
        elif fault is Fault.TOO_MUCH:
            body += bytes(64 << 20)
        place = ("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        long = [("X-Long", "x" * (64 << 20))] if fault is Fault.LONG_HEADER else []
        self.reply(206, body, place, *long, length=None if fault is Fault.TOO_MUCH else length)
        if fault is Fault.STALLS:
            ended.wait()

    def reply(
        self, status: int, body: bytes, *headers: tuple[str, str], length: int | None = -1
    ) -> None:
        """Send an answer; `length` is what it says of the body, -1 for the truth."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def _sbin(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert found is not None, f"{program} is not installed (tools/setup)"
    return found
