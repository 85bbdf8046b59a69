"""A small BitTorrent tracker on loopback (HTTP: BEP 3, BEP 23), which tells who announced what."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from p2pcloopd.engine.disk.metainfo import bencode
from tests.support.threads import running
from tests.support.waiting import BOUND

MAX_ANNOUNCES = 10_000


@dataclass(frozen=True)
class Announce:
    """What a client said.

    Attributes:
        info_hash: v1, 20 bytes.
        peer: the address it came from, and the port at which it says that it listens.
        event: `started`, `completed`, `stopped`, or empty.
        left: bytes that it lacks.
    """

    info_hash: bytes
    peer: tuple[str, int]
    event: str
    left: int


class Tracker:
    """Knows who has what, and every announce since it began. Made by `tracker`.

    Attributes:
        url: the announce URL.
        interval: seconds until clients are to ask again.
        always: peers that are named for every torrent, though they never announced it.
    """

    def __init__(self, url: str, interval: int, always: Sequence[tuple[str, int]]) -> None:
        self.url = url
        self.interval = interval
        self.always = list(always)
        self._announces: list[Announce] = []
        self._news = threading.Condition()

    @property
    def announces(self) -> tuple[Announce, ...]:
        """Everything that was said, in order."""
        with self._news:
            return tuple(self._announces)

    def peers(self, info_hash: bytes) -> list[tuple[str, int]]:
        """Who announced a torrent last, but for those who have stopped."""
        known = {a.peer: a.event for a in self.announces if a.info_hash == info_hash}
        return self.always + [peer for peer, event in known.items() if event != "stopped"]

    def wait(self, condition: Callable[[Announce], object]) -> Announce:
        """Wait for an announce of which `condition` is true; past ones count."""

        def found() -> Announce | None:
            return next((one for one in self._announces if condition(one)), None)

        with self._news:
            announce = self._news.wait_for(found, BOUND)
            assert announce is not None, self._announces
            return announce

    def answer(self, query: str, host: str) -> bytes:
        """Note an announce and tell the others' addresses; a bencoded dictionary."""
        values = parse_qs(query, encoding="latin-1")
        try:
            announce = Announce(
                values["info_hash"][0].encode("latin-1"),
                (host, int(values["port"][0])),
                values.get("event", [""])[0],
                int(values["left"][0]),
            )
        except (KeyError, ValueError) as err:
            return bencode({b"failure reason": repr(err).encode()})
        with self._news:
            assert len(self._announces) < MAX_ANNOUNCES, "a client announces without a pause"
            self._announces.append(announce)
            self._news.notify_all()
        others = [peer for peer in self.peers(announce.info_hash) if peer != announce.peer]
        peers: object
        if values.get("compact", ["1"])[0] == "0":
            peers = [{b"ip": h.encode(), b"port": p} for h, p in others]
        else:
            peers = b"".join(socket.inet_aton(h) + p.to_bytes(2, "big") for h, p in others)
        return bencode({b"interval": self.interval, b"peers": peers})


@contextlib.contextmanager
def tracker(*, interval: int = 1, always: Sequence[tuple[str, int]] = ()) -> Iterator[Tracker]:
    """Run a tracker in this process, on a free port of 127.0.0.1, while the context lasts.

    Arguments as the attributes of `Tracker`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            found = url.path == "/announce"
            body = known.answer(url.query, self.client_address[0]) if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # who ends does not wait for the answer
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known = Tracker(f"http://127.0.0.1:{server.server_port}/announce", interval, always)
    with running(server):
        yield known
