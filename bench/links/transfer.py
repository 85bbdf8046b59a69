"""A plain TCP transfer between two hosts: it shows the rate of the link without our programs.

Run as a program on either host, so it imports nothing of ours: `transfer.py send ADDRESS PORT`,
`transfer.py receive ADDRESS PORT`. The receiver prints the round trip, the median time of a TCP
handshake, as a line of seconds. Then it reads until it is ended.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
import time

_HANDSHAKES = 15
_UNIT = 1 << 20


def _send(address: str, port: int) -> None:
    data = bytes(_UNIT)
    with socket.create_server((address, port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                while True:
                    connection.sendall(data)


def _handshake(address: str, port: int) -> float:
    start = time.perf_counter()
    with socket.create_connection((address, port)) as connection:
        seconds = time.perf_counter() - start
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0] + [0] * 4))
    return seconds


def _receive(address: str, port: int) -> None:
    times = [_handshake(address, port) for _ in range(_HANDSHAKES)]
    print(statistics.median(times), flush=True)
    with socket.create_connection((address, port)) as connection:
        while connection.recv(_UNIT):
            pass


if __name__ == "__main__":
    {"send": _send, "receive": _receive}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
