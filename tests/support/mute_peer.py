"""Peers that do not serve (BEP 3): they answer a handshake, have everything, and send no piece."""

from __future__ import annotations

import contextlib
import enum
import socketserver
import threading
from collections.abc import Iterator

from tests.support.threads import running

PROTOCOL = b"\x13BitTorrent protocol"
HANDSHAKE_SIZE = 68
UNCHOKE, BITFIELD, REQUEST = 1, 5, 6


class Manner(enum.Enum):
    """How a peer fails to serve."""

    SILENT = "takes the connection and says nothing"
    CHOKES = "has everything and never unchokes"
    MUTE = "has everything, unchokes, and answers no request"
    HANGS_UP = "hangs up after the handshake"


class MutePeer:
    """A running peer. Made by `mute_peer`.

    Attributes:
        address: where it listens.
        connections: how many it has taken.
        requests: how many blocks it was asked for.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.connections = 0
        self.requests = 0
        self._lock = threading.Lock()

    def note(self, *, connections: int = 0, requests: int = 0) -> None:
        """Count; several connections do."""
        with self._lock:
            self.connections += connections
            self.requests += requests


@contextlib.contextmanager
def mute_peer(manner: Manner, pieces: int, host: str = "127.0.0.1") -> Iterator[MutePeer]:
    """Run a peer that seems to have all pieces of every torrent, while the context lasts."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            peer.note(connections=1)
            with contextlib.suppress(ConnectionError):
                self.talk()

        def talk(self) -> None:
            if manner is Manner.SILENT:
                self.rfile.read()
                return
            self.wfile.write(_greeting(self.rfile.read(HANDSHAKE_SIZE), manner, pieces))
            if manner is Manner.HANGS_UP:
                return
            while len(header := self.rfile.read(4)) == 4:
                message = self.rfile.read(int.from_bytes(header, "big"))
                peer.note(requests=message[:1] == bytes([REQUEST]))

    server = _Server((host, 0), Handler)
    peer = MutePeer((host, server.server_address[1]))
    with running(server):
        yield peer


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


def _greeting(handshake: bytes, manner: Manner, pieces: int) -> bytes:
    answer = PROTOCOL + bytes(8) + handshake[28:48] + b"-XX0000-mute by kind"
    if manner is Manner.HANGS_UP:
        return answer
    bits = bytearray(b"\xff" * -(-pieces // 8))
    bits[-1] &= 0xFF << (-pieces % 8) & 0xFF
    answer += _message(BITFIELD, bytes(bits))
    return answer + _message(UNCHOKE) if manner is Manner.MUTE else answer


def _message(number: int, payload: bytes = b"") -> bytes:
    return (1 + len(payload)).to_bytes(4, "big") + bytes([number]) + payload
