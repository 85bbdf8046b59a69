"""Processes that read what strangers wrote run in bubblewrap and see only what they are given.

A guest's root may mount hostfs (whose `hostfs=` confinement yields to `..`) or insert a module
that runs natively: what is not visible here is the only thing it cannot reach.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pcloop.errors import GuestError
from p2pcloopd.guest.kernel import find_busybox, shared_libraries
from p2pcloopd.programs import find_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_START_TIMEOUT = 20.0

_GATE = 'echo >&0 && read -r go && exec "$@" < /dev/null'
"""Runs a command only when its starter, at the other end of standard input, is still there.

bubblewrap ties the sandbox's life to ours late in its start: were we killed before that, the
sandbox would stay for ever. Nothing is read then, and the gate ends instead.
"""


def program_files(program: Path) -> dict[Path, Path]:
    """Return what a program needs to run, each file at its own place: itself, its libraries."""
    libraries = shared_libraries(program)
    # glibc opens it without saying so beforehand, at the first pthread_cancel.
    unwinders = [path.with_name("libgcc_s.so.1") for path in libraries if path.name == "libc.so.6"]
    return {path: path for path in [program, *libraries, *filter(Path.exists, unwinders)]}


def argv(
    command: Sequence[str],
    *,
    visible: Mapping[Path, Path],
    tmpfs: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    share_network: bool = False,
) -> list[str]:
    """Return `command` wrapped in bubblewrap: no capability, namespaces of its own, and of the
    host's files only `visible`, all read-only.

    Args:
        visible: place inside the sandbox → file or directory of the host.
        tmpfs: place → bytes it may hold; writable and executable.
        environment: all the variables it has.
        share_network: keep the host's network namespace.

    Raises:
        NeedsPackageError: bubblewrap is not installed.
    """
    words = [
        str(find_program("bwrap", "bubblewrap")),
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
        *("--new-session", "--cap-drop", "ALL", "--clearenv", "--hostname", "guest"),
        *(("--share-net",) if share_network else ()),
        *("--proc", "/proc", "--dev", "/dev"),
    ]
    for place, size in (tmpfs or {}).items():
        words += ["--size", str(size), "--tmpfs", place]
    for inside, outside in visible.items():
        words += ["--ro-bind", str(outside), str(inside)]
    for name, value in (environment or {}).items():
        words += ["--setenv", name, value]
    busybox = str(find_busybox())
    words += ["--ro-bind", busybox, busybox, "--remount-ro", "/", "--chdir", "/"]
    return [*words, "--", busybox, "sh", "-c", _GATE, "gate", *command]


class SandboxedProcess:
    """A running sandbox, known by pidfds: what is signalled is never another process.

    Attributes:
        init_pid: process 1 of the sandbox, as the host numbers it; None when it never started.
    """

    def __init__(self, popen: subprocess.Popen[bytes], init_pid: int | None) -> None:
        self._popen = popen
        self._outer = os.pidfd_open(popen.pid)
        self._inner: int | None = None
        self.init_pid = init_pid
        if init_pid is not None:
            # It may have ended already; then nothing is left to signal.
            with suppress(ProcessLookupError):
                self._inner = os.pidfd_open(init_pid)

    async def wait(self) -> int:
        """Return the exit status of the command: its code, or 128 + the signal that ended it."""
        await trio.lowlevel.wait_readable(self._outer)
        code = self._popen.wait()
        return 128 - code if code < 0 else code

    def kill(self) -> None:
        """End everything in the sandbox at once."""
        # The outer process ends when the inner one has, and takes its exit status along.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._inner or self._outer, signal.SIGKILL)

    async def finish(self) -> None:
        """Kill what still runs, and return when not one process is left."""
        self.kill()
        with trio.CancelScope(shield=True):
            await self.wait()
            if self._inner is not None:
                # Process 1 counts as dead only after all others of its namespace are.
                await trio.lowlevel.wait_readable(self._inner)
                os.close(self._inner)
            os.close(self._outer)


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    pass_fds: Iterable[int] = (),
    output: int = subprocess.DEVNULL,
    cpu: int | None = None,
) -> AsyncIterator[SandboxedProcess]:
    """Run a command that `argv` made; when the block is left nothing of it is left.

    Args:
        pass_fds: descriptors that the command inherits under their numbers.
        output: descriptor for its standard output and error.
        cpu: the only CPU it may use.

    Raises:
        GuestError: the sandbox does not start.
    """
    info_read, info_write = os.pipe()
    gate, gate_inside = socket.socketpair()
    bwrap, *rest = command
    words = [bwrap, "--info-fd", str(info_write), *rest]
    if cpu is not None:
        words = [str(find_program("taskset", "util-linux")), "-c", str(cpu), *words]
    try:
        # Started by this very thread: --die-with-parent means the thread that forked.
        popen = subprocess.Popen(  # noqa: ASYNC220  see above; it takes milliseconds
            words,
            stdin=gate_inside.fileno(),
            stdout=output,
            stderr=output,
            pass_fds=[*pass_fds, info_write],
            start_new_session=True,
        )
    except OSError as err:
        os.close(info_read)
        gate.close()
        raise GuestError(f"{words[0]} does not start: {err.strerror}") from err
    finally:
        os.close(info_write)
        gate_inside.close()
    with trio.CancelScope(shield=True):
        process = SandboxedProcess(popen, await _read_init_pid(info_read))
    try:
        await _open_gate(gate)
        yield process
    finally:
        await process.finish()


async def _open_gate(gate: socket.socket) -> None:
    """Let the command run once the sandbox is ready; one that failed has hung up instead, and its
    exit status tells."""
    with trio.socket.from_stdlib_socket(gate) as stream, suppress(BrokenPipeError):
        if await stream.recv(1):
            await stream.send(b"go\n")


async def _read_init_pid(info: int) -> int | None:
    """Take the pid of the sandbox's process 1 from what bubblewrap tells, which it ends at once."""
    text = b""
    async with trio.lowlevel.FdStream(info) as stream:
        with trio.move_on_after(_START_TIMEOUT):
            async for piece in stream:
                text += piece
    with suppress(ValueError):
        return int(json.loads(text)["child-pid"])
    return None
