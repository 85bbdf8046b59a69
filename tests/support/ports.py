"""Ports of loopback for programs that must be told one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from itertools import cycle
from pathlib import Path

from tests.support.waiting import BOUND

_COUNT = 8192


def _told() -> cycle[int]:
    """The ports below those that the kernel gives to programs which ask for any; processes that
    test side by side begin far from each other, and none tells a port twice."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(max(first - _COUNT, 1024), first)
    begin = os.getpid() * 997 % len(ports)
    return cycle([*ports[begin:], *ports[:begin]])


_PORTS = _told()


def free_port() -> int:
    """A port of TCP at which no process listens now, and at which one does later only if it was
    told this very port: while a test runs, the kernel gives the others to all that ask."""
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
