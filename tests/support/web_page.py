"""A browser of few abilities for the page of a node: requests, and the events that follow."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.support.waiting import BOUND


class Page:
    """The page at a URL that `p2pcloop web` printed."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port, self.path = parts.hostname, parts.port, parts.path
        self.origin = f"http://{parts.netloc}"

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        absolute: bool = False,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request: its status, headers and body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=BOUND)
        try:
            where = path if absolute else self.path + path
            connection.request(method, where, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, path: str, fields: object, **headers: str) -> tuple[int, Any]:
        """A POST as the page's own script makes it, but for some headers."""
        sent = {"Origin": self.origin, "Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        status, _, body = self.ask(path, "POST", sent, json.dumps(fields).encode())
        return status, json.loads(body) if body.startswith(b"{") else body

    @contextmanager
    def events(self, path: str = "events") -> Iterator[Iterator[tuple[str, Any]]]:
        """The events at a path, each with its name and its value."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=BOUND)
        connection.request("GET", self.path + path)
        answer = connection.getresponse()
        assert answer.status == 200
        try:
            yield _events(answer)
        finally:
            answer.close()
            connection.close()

    def hang_up(self, path: str) -> None:
        """Ask for something that goes on, and reset the connection once it has begun."""
        with socket.create_connection((self.host, self.port), BOUND) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            host = f"{self.host}:{self.port}"
            connection.sendall(f"GET {self.path}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
