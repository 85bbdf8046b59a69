"""How long a read waits for a chunk that is not here, over loopback from one peer.

Reads of 4 KiB through NBD, one after the other, each in another chunk and far enough from the last
that no piece is asked for twice.
"""

from __future__ import annotations

import random
import shutil
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.benchmarks.harness import Bench, BenchError, Contenders, Measure, Row, Values
from tools.benchmarks.processes import Argument, node, seeding, server

_APART = 16 * 65536  # bytes of image between two reads
_BLOCK = 4096
_OPTION_GO, _REPLY_INFO = 7, 3
_ACKNOWLEDGED = 1
_LIMIT = 30.0


class NbdReader:
    """As much of an NBD client as reads one export (NBD protocol, fixed newstyle)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_LIMIT)
        self._socket.connect(str(path))
        try:
            self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def read(self, offset: int) -> bytes:
        """A block of the export."""
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, offset, _BLOCK))
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        if magic != 0x67446698 or error:
            raise BenchError(f"the NBD server answered a read with error {error}")
        return self._receive(_BLOCK)

    def close(self) -> None:
        """Say goodbye and hang up."""
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0))
        self._socket.close()

    def _negotiate(self) -> None:
        if self._receive(16) != b"NBDMAGICIHAVEOPT":
            raise BenchError("the NBD server is not of the newstyle")
        self._receive(2)
        self._socket.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        data = struct.pack(">IH", 0, 0)  # the default export, no information asked for
        self._socket.sendall(b"IHAVEOPT" + struct.pack(">II", _OPTION_GO, len(data)) + data)
        while True:
            _, _, reply, length = struct.unpack(">QIII", self._receive(20))
            self._receive(length)
            if reply == _ACKNOWLEDGED:
                return
            if reply != _REPLY_INFO:
                raise BenchError(f"the NBD server refused its export (reply {reply:#x})")

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise BenchError("the NBD server hung up")
            data += part
        return data


def scattered_data(image: Path) -> dict[int, bytes]:
    """Blocks of the image that hold data, by offset, far apart, in random but fixed order."""
    found: list[tuple[int, bytes]] = []
    with image.open("rb") as file:
        for offset in range(_APART, image.stat().st_size - _APART, _APART):
            file.seek(offset)
            block = file.read(_BLOCK)
            if block.strip(b"\0"):
                found.append((offset, block))
    random.Random(1).shuffle(found)
    return dict(found)


def _wait_times(reader: NbdReader, blocks: dict[int, bytes]) -> list[float]:
    """Milliseconds for each block; what comes is compared."""
    times = []
    for offset, block in blocks.items():
        start = time.perf_counter()
        data = reader.read(offset)
        times.append((time.perf_counter() - start) * 1000)
        if data != block:
            raise BenchError(f"wrong data at {offset}")
    return times


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    blocks = scattered_data(bench.image)
    if len(blocks) < 100:
        raise BenchError(f"only {len(blocks)} places of the image hold data; 100 are needed")

    with seeding(bench) as link:

        def fetches() -> Values:
            home, path = bench.work / "reader", bench.work / "nbd.sock"
            argv: list[Argument] = [bench.p2pcloop, "block", link, "--home", home]
            try:
                with (
                    node(bench, home),
                    server([*argv, "--nbd", f"unix:{path}"], path, bench.work / "block.log"),
                ):
                    reader = NbdReader(path)
                    reader.read(0)  # what is needed once: manifest, maps, the connection
                    times = _wait_times(reader, blocks)
                    reader.close()
            finally:
                shutil.rmtree(home, ignore_errors=True)
            cuts = statistics.quantiles(times, n=100, method="inclusive")
            return {"p50": cuts[49], "p99": cuts[98], "max": max(times), "reads": len(times)}

        yield {"p2pcloop": fetches}


FETCH = Measure(
    "fetch",
    "demand fetch of one missing chunk over loopback",
    [
        Row("demand fetch, p50", "ms", ("p2pcloop", "p50"), 3),
        Row("demand fetch, p99", "ms", ("p2pcloop", "p99"), 15),
    ],
    _contenders,
)
