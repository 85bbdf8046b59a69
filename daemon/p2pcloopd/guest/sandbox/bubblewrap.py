"""Runs processes that read a stranger's data in bubblewrap, where they see only what they are
given.

A guest's root may mount hostfs (whose `hostfs=` confinement yields to `..`) or insert a module that
runs natively, so it can reach all that is visible in the sandbox. docs/guest.md lists what that is.

`prepare` puts a sandbox together, and `running` runs it. Its start is a chain of programs: prlimit,
unshare and a shell that makes the mount namespace (staging.py), bubblewrap, and the gate (gate.sh),
which runs the command.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pcloop.errors import GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.guest.sandbox import syscall_filter
from p2pcloopd.guest.sandbox.failure import sandbox_failure
from p2pcloopd.guest.sandbox.scope import scope_words
from p2pcloopd.guest.sandbox.staging import Stage
from p2pcloopd.guest.system.kernel import find_busybox, shared_libraries
from p2pcloopd.guest.system.scripts import script
from p2pcloopd.programs import find_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_START_TIMEOUT = 20.0
_MAX_COMPLAINT = 4096

_TASKS_OUTSIDE = 8
"""Tasks of bubblewrap and of its starters, which are in the same control group."""

_INSIDE = "1000"
"""User and group inside a sandbox; it need not know the numbers outside."""

_NAMESPACES = (
    *("--unshare-all", "--unshare-user", "--die-with-parent"),
    *("--uid", _INSIDE, "--gid", _INSIDE, "--cap-drop", "ALL", "--new-session"),
    *("--clearenv", "--hostname", "guest"),
)
"""Arguments of bubblewrap that all sandboxes have."""

_DEVICES = ("full", "null", "random", "urandom", "zero")

_HIDDEN = (
    *("/proc/cmdline", "/proc/interrupts", "/proc/kcore", "/proc/key-users", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list", "/proc/vmallocinfo"),
)
"""Files about the host that any process may read and the sandbox does not need: names of keys, the
parameters of its boot, the rhythm of its keyboard."""

_LIMITS = {
    # 1 byte and not 0, since collectors of dumps that read from a pipe ignore a limit of 0
    # (core(5)): they would get the guest's memory.
    "core": 1,
    "nofile": 4096,
    "memlock": 8 << 20,
    "msgqueue": 0,
    "sigpending": 4096,
}
"""Names as in prlimit(1)."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a sandbox has of networks: nothing but sockets of AF_UNIX, if it is not said otherwise.

    Attributes:
        shared: it has the host's network namespace, and can make sockets of IPv4 only.
        loopback: its programs reach each other by IPv4, too.
        capabilities: names of those that it has in its own namespaces, to set up a network there;
            it can then make sockets of IPv4 and netlink, too.
    """

    shared: bool = False
    loopback: bool = False
    capabilities: Sequence[str] = ()

    def words(self) -> list[str]:
        """Arguments of bubblewrap."""
        words = ["--share-net"] if self.shared else []
        # A user namespace below that of the network would have no say there; the filter of system
        # calls refuses new ones in any case.
        words += ["--disable-userns"] if not self.capabilities else []
        for name in self.capabilities:
            words += ["--cap-add", name]
        return words

    def families(self) -> list[socket.AddressFamily]:
        """The families of the sockets that may be made."""
        families = [socket.AF_INET] if self.shared else [socket.AF_UNIX]
        if self.loopback or self.capabilities:
            families.append(socket.AF_INET)
        if self.capabilities:
            families.append(socket.AF_NETLINK)
        return families


NO_NETWORK = Network()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A command and what it may see and do.

    Attributes:
        scope: words before it that give it a control group; empty if it can have none.
        start: the command line up to bubblewrap.
        arguments: bubblewrap's arguments, with the command.
        syscall_filter: a seccomp program, as bubblewrap takes it.
    """

    scope: list[str]
    start: list[str]
    arguments: list[str]
    syscall_filter: bytes


def program_files(program: Path) -> dict[Path, Path]:
    """Return the program and its libraries, for `prepare`, each at the same place as outside."""
    libraries = shared_libraries(program)
    # glibc opens it at the first pthread_cancel, so it is not listed among the libraries.
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
    devices: Sequence[Path] = (),
    network: Network = NO_NETWORK,
) -> Sandbox:
    """Put a sandbox together: no capability but those of `network`, namespaces of its own, and of
    the host's files only `visible`, all read-only. If root calls this, the sandbox runs as another
    user, which then owns the sockets of `visible`. That user can read the files, but in the
    directories only those that all users may read.

    Args:
        command: the command line that runs in it.
        visible: place inside the sandbox → file, socket or directory of the host.
        memory: bytes that one process may map, and that all may take in a control group.
        processes: how many it may have at once; threads count.
        tmpfs: place → bytes it may hold, in at most 64 files; writable and executable.
        environment: its variables; it has no others.
        devices: device files of the host that it can open, at the same places.

    Raises:
        NeedsPackageError: a program or library that makes the sandbox is not installed.
    """
    busybox = find_busybox()
    stage = Stage(busybox)
    words = [*_NAMESPACES, *network.words()]
    words += _view(stage, {**visible, busybox: busybox}, tmpfs or {}, devices)
    for name, value in (environment or {}).items():
        words += ["--setenv", name, value]
    tasks = str(_lowered("nproc", processes))
    words += ["--", str(busybox), "sh", "-c", script("gate"), "gate", tasks, *command]
    limits = {name: _lowered(name, value) for name, value in (_LIMITS | {"as": memory}).items()}
    limiter = [str(find_program("prlimit", "util-linux"))]
    limiter += [f"--{name}={value}" for name, value in limits.items()]
    start = [*limiter, *stage.words(), str(find_program("bwrap", "bubblewrap"))]
    scope = scope_words(memory, processes + _TASKS_OUTSIDE)
    return Sandbox(scope, start, words, syscall_filter.build(*network.families()))


def _view(
    stage: Stage, visible: Mapping[Path, Path], tmpfs: Mapping[str, int], devices: Sequence[Path]
) -> list[str]:
    """Return bubblewrap's arguments for the files of a sandbox; the order of mounts matters."""
    words = ["--proc", "/proc"]
    for hidden in filter(os.path.exists, _HIDDEN):
        words += ["--ro-bind", "/dev/null", hidden]
    words += ["--remount-ro", "/proc", "--tmpfs", "/dev"]
    for device in _DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for path in devices:
        words += ["--dev-bind", str(stage.device(path)), str(path)]
    for place, size in tmpfs.items():
        words += ["--bind", str(stage.tmpfs(size)), place]
    for inside, outside in visible.items():
        words += ["--ro-bind", str(stage.hand_in(outside)), str(inside)]
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def _lowered(name: str, wanted: int) -> int:
    """Return a limit that can be set without a privilege: at most the hard one."""
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


class SandboxedProcess:
    """A running sandbox, held by pidfds: so a signal never reaches another process.

    Attributes:
        init_pid: process 1 of the sandbox, by its number on the host; None if it never started.
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

    def command_pid(self) -> int:
        """Return the number on the host of the command's process.

        Raises:
            GuestError: it has ended.
        """
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # that one has ended
                # Behind its name, which may have any characters: its state, its parent.
                parent = status.read_bytes().rpartition(b")")[2].split()[1]
                if int(parent) == self.init_pid:
                    return int(status.parent.name)
        raise GuestError("the program in the sandbox has ended")

    async def wait(self) -> int:
        """Return the exit status of the command: its code, or 128 + the signal that ended it."""
        await trio.lowlevel.wait_readable(self._outer)
        code = self._popen.wait()
        return 128 - code if code < 0 else code

    def kill(self) -> None:
        """End all processes of the sandbox at once; nothing happens if they have ended."""
        # The outer process ends after the inner one, with its exit status.
        if not self._finished:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._inner or self._outer, signal.SIGKILL)

    async def finish(self) -> None:
        """Kill what still runs, and return when no process is left."""
        self.kill()
        with trio.CancelScope(shield=True):
            await self.wait()
            if self._inner is not None:
                # Process 1 is dead only after all others of its namespace are.
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
    """Run a sandbox; when the block is left, no process of it is left.

    Args:
        sandbox: as `prepare` made it.
        pass_fds: descriptors that the command inherits under their numbers.
        output: descriptor for its standard output and error.
        cpu: the only CPU it may use.

    Raises:
        GuestError: the sandbox does not start; the message says what failed.
    """
    # Only a try shows whether systemd gives a control group.
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
    filter_read = readable(sandbox.syscall_filter)
    gate, gate_inside = socket.socketpair()
    options = ["--info-fd", str(info_write), "--seccomp", str(filter_read)]
    words = [*start, *options, *sandbox.arguments]
    try:
        with _on_cpu(cpu):
            # Started by this very thread: --die-with-parent means the thread that forked.
            popen = subprocess.Popen(  # noqa: ASYNC220  see above; it takes milliseconds
                words,
                stdin=gate_inside.fileno(),
                stdout=output,
                stderr=complaint_write,
                pass_fds=[*pass_fds, info_write, filter_read],
                env=_environment(),
                start_new_session=True,
            )
    except OSError as err:
        os.close(info_read)
        os.close(complaint_read)
        gate.close()
        raise sandbox_failure(f"{words[0]}: {err.strerror}") from err
    finally:
        for fd in (info_write, filter_read, complaint_write):
            os.close(fd)
        gate_inside.close()
    return await _let_through(popen, info_read, complaint_read, gate)


@contextmanager
def _on_cpu(cpu: int | None) -> Iterator[None]:
    """Let this thread run on one CPU only: what it starts inside inherits that, and keeps it.

    Raises:
        OSError: this process may not use that CPU, or there is none.
    """
    if cpu is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as err:
        raise OSError(
            err.errno, tr("CPU {cpu} cannot be used: {why}", cpu=cpu, why=err.strerror)
        ) from err
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


async def _let_through(
    popen: subprocess.Popen[bytes], info: int, complaint: int, gate: socket.socket
) -> SandboxedProcess:
    """Return a sandbox that has just been started, once its command runs.

    Args:
        popen: the first program of its start.
        info: bubblewrap tells here the pid of process 1.
        complaint: standard error of all that starts it.
        gate: the other end is the gate's standard input (gate.sh).
    """
    with trio.CancelScope(shield=True):
        complaints = trio.lowlevel.FdStream(complaint)
        process = SandboxedProcess(popen, await _read_init_pid(info))
    try:
        async with complaints:
            await _open_gate(gate, complaints)
    except BaseException:
        await process.finish()
        raise
    return process


def _environment() -> dict[str, str]:
    """Return the variables of the programs that make a sandbox; its command has others."""
    bus = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    return path | {name: os.environ[name] for name in bus if name in os.environ}


def readable(data: bytes) -> int:
    """Return the reading end of a pipe that holds `data`, at most 64 KiB."""
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as pipe:
        pipe.write(data)
    return read_end


async def _open_gate(gate: socket.socket, complaints: trio.lowlevel.FdStream) -> None:
    """Let the command run once the sandbox is ready.

    Raises:
        GuestError: it hung up instead, or was not ready in time.
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
    late = (
        tr("it was not ready within {start_timeout:g} s\n", start_timeout=_START_TIMEOUT)
        if waiting.cancelled_caught
        else ""
    )
    raise sandbox_failure(late + text.decode(errors="replace"))


async def _read_init_pid(info: int) -> int | None:
    """Return the pid of the sandbox's process 1 from bubblewrap's JSON, which ends at once."""
    text = b""
    async with trio.lowlevel.FdStream(info) as stream:
        with trio.move_on_after(_START_TIMEOUT):
            async for piece in stream:
                text += piece
    with suppress(ValueError):
        return int(json.loads(text)["child-pid"])
    return None
