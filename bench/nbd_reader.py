"""As much of an NBD client as reads one export (NBD protocol, fixed newstyle)."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from bench.harness import BenchError

_OPTION_GO, _REPLY_INFO, _REPLY_ACKNOWLEDGED = 7, 3, 1
_BLOCK = 4096


class NbdReader:
    """A connection to an export.

    Args:
        where: a unix socket, or a socket that is connected already.
        limit: seconds that the server may let it wait.
        name: of the export.

    Raises:
        BenchError: from any method: the server broke the protocol, refused, or hung up.
        TimeoutError: from any method: it said nothing for `limit` seconds.
    """

    def __init__(self, where: Path | socket.socket, limit: float = 30, name: bytes = b"") -> None:
        self._lengths: dict[int, int] = {}
        path = None if isinstance(where, socket.socket) else str(where)
        self._socket: socket.socket = (
            where if isinstance(where, socket.socket) else socket.socket(socket.AF_UNIX)
        )
        self._socket.settimeout(limit)
        try:
            if path is not None:
                self._connect(path, time.monotonic() + limit)
            self._negotiate(name)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, path: str, deadline: float) -> None:
        while True:
            try:
                return self._socket.connect(path)
            except ConnectionRefusedError:  # bound, and about to listen
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.001)

    def fileno(self) -> int:
        """The socket: readable when an answer begins."""
        return self._socket.fileno()

    def read(self, offset: int, length: int = _BLOCK) -> bytes:
        """A part of the export; nothing else may be outstanding."""
        self.ask(0, offset, length)
        return self.answer()[1]

    def ask(self, handle: int, offset: int, length: int) -> None:
        """Ask for a part; `handle` must be no other's that is outstanding."""
        self._lengths[handle] = length
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, handle, offset, length))

    def trim(self, offset: int, length: int) -> None:
        """Discard a part of the export; nothing else may be outstanding."""
        self._do(4, offset, length)

    def flush(self) -> None:
        """Have all made durable; nothing else may be outstanding."""
        self._do(3, 0, 0)

    def _do(self, command: int, offset: int, length: int) -> None:
        self._lengths[0] = 0
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 0, offset, length))
        self.answer()

    def answer(self) -> tuple[int, bytes]:
        """Wait for an answer, whichever comes first: its handle and its bytes."""
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if magic != 0x67446698 or error:
            raise BenchError(f"the NBD server answered with error {error}")
        return handle, self._receive(self._lengths.pop(handle))

    def close(self) -> None:
        """Say goodbye and hang up."""
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        self._socket.close()

    def _negotiate(self, name: bytes) -> None:
        if self._receive(16) != b"NBDMAGICIHAVEOPT":
            raise BenchError("the NBD server is not of the newstyle")
        self._receive(2)
        self._socket.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        data = struct.pack(">I", len(name)) + name + bytes(2)  # no information asked for
        self._socket.sendall(b"IHAVEOPT" + struct.pack(">II", _OPTION_GO, len(data)) + data)
        while True:
            _, _, reply, length = struct.unpack(">QIII", self._receive(20))
            self._receive(length)
            if reply == _REPLY_ACKNOWLEDGED:
                return
            if reply != _REPLY_INFO:
                raise BenchError(f"the NBD server refused its export (reply {reply:#x})")

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise BenchError("the NBD server hung up")
            data += part
        return bytes(data)
