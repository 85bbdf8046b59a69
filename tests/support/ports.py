"""Ports of loopback for programs that must be told one."""

from __future__ import annotations

import socket
import subprocess
import time

from tests.support.waiting import BOUND


def free_port(host: str = "127.0.0.1") -> int:
    """A port of TCP at which no process listens now."""
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


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
