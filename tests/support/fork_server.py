"""Runs p2pcloop and p2pcloopd as forks of one interpreter that has loaded both.

To load an interpreter and our modules took a third of the suite's processor time. `Node.run`,
`Node.start` and `Guest` have the programs forked here instead; tests of real processes (with a
controlling terminal, with signals, with streams of their own) start the installed programs.

As a program it serves a listening socket (SOCK_SEQPACKET), whose descriptor is its argument, until
its standard input ends. Each connection asks for one process:

    JSON {"program", "words", "environment", "directory", "targets", "session", "tuning"}, and the
    descriptors for `targets`
    → the process id, 4 bytes
    → the status that waitpid(2) gives, 4 bytes, once it has ended
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_MAX_REQUEST = 1 << 17
_MAX_FDS = 8
_NUMBER = struct.Struct("<i")
_FIRST_FREE = 64
"""Descriptors from here on are no targets."""


class Forked:
    """A process that the server has forked. It has the methods of `subprocess.Popen` that tests of
    nodes use.

    Attributes:
        pid: its number.
        returncode: its exit code, or the negative number of the signal that ended it; None until
            `wait` has returned.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        (self.pid,) = _NUMBER.unpack(connection.recv(_NUMBER.size))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; TimeoutExpired if it takes longer than `timeout` seconds."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                data = self._connection.recv(_NUMBER.size)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a fork", timeout or 0) from None
            self._connection.close()
            self.returncode = os.waitstatus_to_exitcode(_NUMBER.unpack(data)[0])
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send it SIGTERM, if it has not ended."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, streams: Sequence[int], timeout: float) -> list[bytes]:
        """Read its output until it has ended; kill it after `timeout` seconds.

        Args:
            streams: ends of pipes, which are closed.

        Returns:
            What each stream gave.
        """
        found: dict[int, bytes] = dict.fromkeys(streams, b"")
        deadline = time.monotonic() + timeout
        try:
            with selectors.DefaultSelector() as waiting:
                for stream in streams:
                    waiting.register(stream, selectors.EVENT_READ)
                while waiting.get_map():
                    ready = waiting.select(max(0, deadline - time.monotonic()))
                    if not ready:
                        raise TimeoutError(f"output does not end: {found}")
                    for key, _ in ready:
                        data = os.read(key.fd, 1 << 16)
                        found[key.fd] += data
                        if not data:
                            waiting.unregister(key.fd)
            self.wait(max(0.1, deadline - time.monotonic()))
        except BaseException:
            self.send_signal(signal.SIGKILL)
            self.wait()
            raise
        finally:
            for stream in streams:
                os.close(stream)
        return list(found.values())


def fork_program(
    program: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    fds: Mapping[int, int],
    *,
    session: bool = False,
    tuning: Mapping[str, float] | None = None,
) -> Forked:
    """Start a program.

    Args:
        program: "p2pcloop" or "p2pcloopd".
        words: its arguments.
        fds: its descriptors: its number of each, and ours.
        session: whether it gets a session of its own.
        tuning: constants of the engine (tuning.py) that it has otherwise, and a p2pcloopd that it
            starts as a fork.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_server())
    request = {
        "program": program,
        "words": list(words),
        "environment": dict(environment),
        "directory": str(Path.cwd()),
        "targets": list(fds),
        "session": session,
        "tuning": dict(tuning or {}),
    }
    socket.send_fds(connection, [json.dumps(request).encode()], list(fds.values()))
    return Forked(connection)


@cache
def _server() -> str:
    """Start the server of this process, which ends with it; its address."""
    directory = tempfile.mkdtemp(prefix="fork-server-")
    address = f"{directory}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.support.fork_server", str(listener.fileno())],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def end() -> None:
        process.kill()
        process.communicate()
        shutil.rmtree(directory)

    atexit.register(end)
    return address


_kept: list[object] = []
"""Objects of the server, in a fork: each would close a descriptor whose number is the fork's."""


def main() -> None:
    """Serve; in each fork, be the program that it is for."""
    from p2pcloop.cli.commands import COMMANDS  # noqa: PLC0415  only the server loads this

    for name in ("p2pcloopd.node.main", *(module for module, _ in COMMANDS.values())):
        importlib.import_module(name)
    _start_daemons_as_forks()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))()


def _start_daemons_as_forks() -> None:
    """Commands start p2pcloopd as `boot` does, unless they have threads."""
    from p2pcloop.client import daemon, refs  # noqa: PLC0415
    from p2pcloopd.forked import fork_daemon  # noqa: PLC0415

    def start(home: Any, ready: int) -> int:
        is_alone = len(list(Path("/proc/self/task").iterdir())) == 1
        return fork_daemon(home, ready) if is_alone else daemon.spawn_daemon(home, ready)

    for function in (daemon.ensure_daemon, daemon.start_daemon, refs.resolve_ref):
        defaults = function.__kwdefaults__
        assert defaults is not None
        assert defaults["start"] is daemon.spawn_daemon
        defaults["start"] = start


def _serve(listener: socket.socket) -> Callable[[], object]:
    """Fork for each connection, until the standard input ends; return what is to be done then.

    That is nothing, and in a fork its program.
    """
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(0, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fd == 0:
                return int
            if key.data is not None:
                waiting.unregister(key.fd)
                os.close(key.fd)
                _tell_end(*key.data)
                continue
            connection, _ = listener.accept()
            data, fds, _, _ = socket.recv_fds(connection, _MAX_REQUEST, _MAX_FDS)
            pid = os.fork()
            if not pid:
                _kept.extend((waiting, listener, connection))
                return _prepare(json.loads(data), fds)
            for fd in fds:
                os.close(fd)
            connection.send(_NUMBER.pack(pid))
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def _tell_end(pid: int, connection: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with connection, contextlib.suppress(OSError):  # the test may not wait for it
        connection.send(_NUMBER.pack(status))


def _prepare(request: dict[str, Any], fds: Sequence[int]) -> Callable[[], None]:
    """Make this fork look like a process of its own."""
    from p2pcloopd.engine.fetch.tuning import TUNING  # noqa: PLC0415

    if request["session"]:
        os.setsid()
    targets: list[int] = request["targets"]
    for number, fd in enumerate(fds):
        os.dup2(fd, _FIRST_FREE + number)
    for number, target in enumerate(targets):
        os.dup2(_FIRST_FREE + number, target)
    begin = 0
    for target in [*sorted(targets), os.sysconf("SC_OPEN_MAX")]:
        if begin < target:  # closerange(0, 0) closes everything
            os.closerange(begin, target)
        begin = target + 1
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  for good
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.argv = [request["program"], *request["words"]]
    for name, value in request["tuning"].items():
        object.__setattr__(TUNING, name, value)  # it is frozen, and many modules have it
    if request["program"] == "p2pcloop":
        from p2pcloop.cli.main import main as program  # noqa: PLC0415
    else:
        from p2pcloopd.node.main import main as program  # noqa: PLC0415
    return program


if __name__ == "__main__":
    main()
