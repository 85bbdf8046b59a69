"""Processes that read what strangers wrote run in bubblewrap and see only what they are given.

A guest's root may mount hostfs (whose `hostfs=` confinement yields to `..`) or insert a module
that runs natively: what is not visible here is the only thing it cannot reach. docs/guest.md says
what that is.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pcloop.errors import GuestError
from p2pcloopd.guest import syscall_filter
from p2pcloopd.guest.kernel import find_busybox, shared_libraries
from p2pcloopd.guest.sandbox_failure import sandbox_failure
from p2pcloopd.guest.scope import scope_words
from p2pcloopd.guest.scripts import script
from p2pcloopd.guest.staging import Stage
from p2pcloopd.programs import find_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_START_TIMEOUT = 20.0
_MAX_COMPLAINT = 4096

_TASKS_OUTSIDE = 8
"""Of bubblewrap and what starts it, in the same control group."""

_INSIDE = "1000"
"""User and group that a sandbox believes to be: the numbers outside are none of its business."""

_DEVICES = ("full", "null", "random", "urandom", "zero")

_HIDDEN = (
    *("/proc/cmdline", "/proc/interrupts", "/proc/kcore", "/proc/key-users", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list", "/proc/vmallocinfo"),
)
"""What a process may read of the host's kernel and has no need of: names of keys, how the host was
booted, the rhythm of its keyboard."""

_LIMITS = {
    # Of 1 byte, not 0: that alone keeps a guest's memory out of the pipes of dump collectors, too
    # (core(5): they ignore a limit of 0).
    "core": 1,
    "nofile": 4096,
    "memlock": 8 << 20,
    "msgqueue": 0,
    "sigpending": 4096,
}
"""Names as in prlimit(1)."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A command and what it may see and do.

    Attributes:
        scope: words before it that give it a control group, where one can be had.
        start: the command line up to bubblewrap.
        arguments: bubblewrap's.
        syscall_filter: what the host's kernel refuses it.
    """

    scope: list[str]
    start: list[str]
    arguments: list[str]
    syscall_filter: bytes


def program_files(program: Path) -> dict[Path, Path]:
    """Return what a program needs to run, each file at its own place: itself, its libraries."""
    libraries = shared_libraries(program)
    # glibc opens it without saying so beforehand, at the first pthread_cancel.
    unwinders = [path.with_name("libgcc_s.so.1") for path in libraries if path.name == "libc.so.6"]
    return {path: path for path in [program, *libraries, *filter(Path.exists, unwinders)]}


def prepare(
    command: Sequence[str],
    *,
    visible: Mapping[Path, Path],
    memory: int,
    processes: int,
    tmpfs: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    share_network: bool = False,
) -> Sandbox:
    """Put a sandbox together: no capability, namespaces of its own, and of the host's files only
    `visible`, all read-only. Where root asks, another user runs it, to whom the sockets of
    `visible` are given away; it reads the files, but in the directories only what all may read.

    Args:
        command: what runs in it.
        visible: place inside the sandbox → file, socket or directory of the host.
        memory: bytes that one process of it may map; and all may take, in a control group.
        processes: how many it may have at once; threads count.
        tmpfs: place → bytes it may hold, in at most 64 files; writable and executable.
        environment: all the variables it has.
        share_network: keep the host's network namespace, for IPv4 alone; not even AF_UNIX then.

    Raises:
        NeedsPackageError: a program or library that makes the sandbox is not installed.
    """
    busybox = find_busybox()
    stage = Stage(busybox)
    words = [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
        *("--uid", _INSIDE, "--gid", _INSIDE, "--cap-drop", "ALL", "--new-session"),
        *("--clearenv", "--hostname", "guest", *(("--share-net",) if share_network else ())),
        *("--proc", "/proc"),
    ]
    for hidden in filter(os.path.exists, _HIDDEN):
        words += ["--ro-bind", "/dev/null", hidden]
    words += ["--remount-ro", "/proc", "--tmpfs", "/dev"]
    for device in _DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for place, size in (tmpfs or {}).items():
        words += ["--bind", str(stage.tmpfs(size)), place]
    for inside, outside in {**visible, busybox: busybox}.items():
        words += ["--ro-bind", str(stage.hand_in(outside)), str(inside)]
    for name, value in (environment or {}).items():
        words += ["--setenv", name, value]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    limits = {name: _lowered(name, value) for name, value in (_LIMITS | {"as": memory}).items()}
    tasks = str(_lowered("nproc", processes))
    words += ["--", str(busybox), "sh", "-c", script("gate"), "gate", tasks, *command]
    limiter = [str(find_program("prlimit", "util-linux"))]
    limiter += [f"--{name}={value}" for name, value in limits.items()]
    start = [*limiter, *stage.words(), str(find_program("bwrap", "bubblewrap"))]
    family = socket.AF_INET if share_network else socket.AF_UNIX
    scope = scope_words(memory, processes + _TASKS_OUTSIDE)
    return Sandbox(scope, start, words, syscall_filter.build(family))


def _lowered(name: str, wanted: int) -> int:
    """Return a limit that takes no privilege to set."""
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


class SandboxedProcess:
    """A running sandbox, known by pidfds: what is signalled is never another process.

    Attributes:
        init_pid: process 1 of the sandbox, as the host numbers it; None when it never started.
    """

    def __init__(self, popen: subprocess.Popen[bytes], init_pid: int | None) -> None:
        self._popen = popen
        self._outer = os.pidfd_open(popen.pid)
        self._inner: int | None = None
        self._finished = False
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
        """End everything in the sandbox at once; nothing happens once that has ended."""
        # The outer process ends when the inner one has, and takes its exit status along.
        if not self._finished:
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
            self._finished = True


@asynccontextmanager
async def running(
    sandbox: Sandbox,
    *,
    pass_fds: Iterable[int] = (),
    output: int = subprocess.DEVNULL,
    cpu: int | None = None,
) -> AsyncIterator[SandboxedProcess]:
    """Run a sandbox; when the block is left nothing of it is left.

    Args:
        sandbox: as `prepare` made it.
        pass_fds: descriptors that the command inherits under their numbers.
        output: descriptor for its standard output and error.
        cpu: the only CPU it may use.

    Raises:
        GuestError: the sandbox does not start; the message says what failed.
    """
    # What cannot be said beforehand: whether systemd gives us a group.
    process = None
    if sandbox.scope:
        with suppress(GuestError):
            process = await _started(
                [*sandbox.scope, *sandbox.start], sandbox, pass_fds, output, cpu
            )
    if process is None:
        process = await _started(sandbox.start, sandbox, pass_fds, output, cpu)
    try:
        yield process
    finally:
        await process.finish()


async def _started(
    start: list[str], sandbox: Sandbox, pass_fds: Iterable[int], output: int, cpu: int | None
) -> SandboxedProcess:
    """Start a sandbox, and return once its command runs.

    Raises:
        GuestError: it does not start; nothing of it is left.
    """
    info_read, info_write = os.pipe()
    complaint_read, complaint_write = os.pipe()
    filter_read = _readable(sandbox.syscall_filter)
    gate, gate_inside = socket.socketpair()
    ours_inside = (info_write, filter_read)
    options = ["--info-fd", str(info_write), "--seccomp", str(filter_read)]
    words = [*start, *options, *sandbox.arguments]
    if cpu is not None:
        words = [str(find_program("taskset", "util-linux")), "-c", str(cpu), *words]
    try:
        # Started by this very thread: --die-with-parent means the thread that forked.
        popen = subprocess.Popen(  # noqa: ASYNC220  see above; it takes milliseconds
            words,
            stdin=gate_inside.fileno(),
            stdout=output,
            stderr=complaint_write,
            pass_fds=[*pass_fds, *ours_inside],
            env=_environment(),
            start_new_session=True,
        )
    except OSError as err:
        os.close(info_read)
        os.close(complaint_read)
        gate.close()
        raise sandbox_failure(f"{words[0]}: {err.strerror}") from err
    finally:
        for fd in (*ours_inside, complaint_write):
            os.close(fd)
        gate_inside.close()
    with trio.CancelScope(shield=True):
        complaints = trio.lowlevel.FdStream(complaint_read)
        process = SandboxedProcess(popen, await _read_init_pid(info_read))
    try:
        async with complaints:
            await _open_gate(gate, complaints)
    except BaseException:
        await process.finish()
        raise
    return process


def _environment() -> dict[str, str]:
    """Of what makes the sandbox; what runs in it has its own."""
    bus = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    return path | {name: os.environ[name] for name in bus if name in os.environ}


def _readable(data: bytes) -> int:
    """Return a pipe's end that gives some kilobytes."""
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as pipe:
        pipe.write(data)
    return read_end


async def _open_gate(gate: socket.socket, complaints: trio.lowlevel.FdStream) -> None:
    """Let the command run once the sandbox is ready.

    Raises:
        GuestError: it hung up instead, or did not come in time.
    """
    with trio.socket.from_stdlib_socket(gate) as stream:
        with trio.move_on_after(_START_TIMEOUT) as waiting:
            if await stream.recv(1):
                # The gate may have been killed since: its exit status tells.
                with suppress(BrokenPipeError):
                    await stream.send(b"go\n")
                return
    text = b""
    with trio.move_on_after(1 if waiting.cancelled_caught else _START_TIMEOUT):
        async for piece in complaints:
            text = (text + piece)[-_MAX_COMPLAINT:]
    late = f"it was not ready within {_START_TIMEOUT:g} s\n" if waiting.cancelled_caught else ""
    raise sandbox_failure(late + text.decode(errors="replace"))


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
