"""Ports of loopback for programs that must be told one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from itertools import cycle

from tests.support.waiting import BOUND

_RANGE = range(10_000, 20_000)
"""Below the ports that nodes choose (node/ports.py), and those that the kernel gives to all that
ask for any: while a test runs, others do."""


def _told() -> cycle[int]:
    """Processes that test side by side begin far from each other, and none tells a port twice."""
    begin = os.getpid() * 997 % len(_RANGE)
    return cycle([*_RANGE[begin:], *_RANGE[:begin]])


_PORTS = _told()


def free_port() -> int:
    """A port of TCP at which no process listens now; later on one does only if it was told it."""
    for port in _PORTS:
        try:
            socket.create_server(("", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")


def wait_listening(process: subprocess.Popen[str], port: int, host: str = "127.0.0.1") -> None:
    """Wait until a program that was just started can be connected to."""
    deadline = time.monotonic() + BOUND
    while True:
        try:
            socket.create_connection((host, port), 1).close()
        except ConnectionRefusedError:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{process.args!r} does not listen at {port}"
            time.sleep(0.01)
        else:
            return
