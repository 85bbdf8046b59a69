"""Boots a disk that a vhost-user socket serves in User-Mode Linux, and stays until the guest ends.

The kernel runs natively, so all of it is in a sandbox (sandbox.py); kernel, modules and busybox
come from this system, never from the image.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import trio

from p2pcloop.errors import FormatError, GuestError
from p2pcloop.protocol import virtio_blk
from p2pcloop.text import printable
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest import console, mconsole, network, sandbox, xsave
from p2pcloopd.guest.kernel import Kernel, find_kernel
from p2pcloopd.guest.native_output import NativeOutput
from p2pcloopd.guest.sandbox import SandboxedProcess
from p2pcloopd.guest.signals import counted_signals
from p2pcloopd.guest.silence import Silence
from p2pcloopd.guest.spec import GuestResult, GuestSpec, Reason
from p2pcloopd.guest.transcript import Transcript

SHUTDOWN_SECONDS = 60.0
"""Who sends SIGTERM or SIGHUP does not come back: a guest that then hangs is ended."""

_STDIN = 0
_CONSOLE = 1  # /dev/tty1, where a PC has its first login
_UNSEEN_CONSOLES = range(2, 16)
_MEMORY_SLACK = 64 << 20
_RUN_SIZE = 1 << 20
_MEMORY_PER_TASK = 128 << 10
"""A Linux kernel has at most a task for each so many bytes of its memory (threads-max), and UML a
process of the host for each of them that has memory of its own."""
_NATIVE_TASKS = 64
_NATIVE_MEMORY = 1 << 30
"""What a process may map besides the guest's memory; that it may map twice."""
_SOCKETS = Path("/run/disks")
_SHIM = Path("/run/xsave.so")
_UML_DIRECTORY = "/run/uml"
_UMID = "guest"


class RunningGuest:
    """A guest while it runs: what its owner may do to it.

    Attributes:
        shutdown_asked: it was asked to shut down.
        killed: it was ended at once rather than shut down.
    """

    def __init__(self, process: SandboxedProcess, pty: console.Pty, directory: Path) -> None:
        self._process = process
        self._pty = pty
        self._reply = directory / "reply"
        self.shutdown_asked = False
        self.killed = False

    async def send_console(self, data: bytes) -> None:
        """Type `data` on the guest's keyboard."""
        await self._pty.send(data)

    async def shutdown(self) -> None:
        """Press Ctrl-Alt-Del: the image's init shuts down in order. Asked again, or where no
        proper answer comes back, the guest ends at once."""
        if self.shutdown_asked:
            self.kill()
            return
        self.shutdown_asked = True
        root = Path(f"/proc/{self._process.init_pid}/root")
        socket = Path(_UML_DIRECTORY, _UMID, "mconsole")
        try:
            await mconsole.send_command(root, socket, self._reply, "cad")
        except (GuestError, FormatError):
            self.kill()

    def kill(self) -> None:
        """End the guest at once, as pulling the plug does."""
        self.killed = True
        self._process.kill()


async def run_guest(
    spec: GuestSpec,
    *,
    on_console: Callable[[bytes], None] | None = None,
    task_status: trio.TaskStatus[RunningGuest] = trio.TASK_STATUS_IGNORED,
) -> GuestResult:
    """Boot a guest and return when it has ended.

    While it runs this owns SIGINT and SIGTERM (the first shuts the guest down in order, the second
    ends it), SIGHUP (shuts it down) and, with console `stdio`, the terminal. A guest that goes on
    for `SHUTDOWN_SECONDS` after SIGTERM or SIGHUP is ended. It must be called from the main
    thread. Cancelled, it kills the guest; however it is left, no process of the guest is.

    Args:
        on_console: called with every piece of what the guest prints.
        task_status: gets the `RunningGuest` once it runs.

    Raises:
        UsageError: the spec cannot be meant.
        NeedsPackageError: a program or file of the system is missing.
        GuestError: the kernel does not start, or finds no root on the disk.
        StorageError: the console's file cannot be written.
    """
    started = trio.current_time()
    spec.check()
    transcript = Transcript(lambda: trio.current_time() - started)
    kernel = await trio.to_thread.run_sync(find_kernel, spec.kernel)
    native = NativeOutput()
    async with AsyncExitStack() as stack:
        stack.callback(native.close)
        directory = _guest_directory(stack)
        pty = console.Pty()
        stack.callback(pty.close)
        if spec.console == "stdio":
            pty.copy_window_size(_STDIN)
        unseen = console.UnseenConsoles(_UNSEEN_CONSOLES)
        stack.callback(unseen.close)
        consoles = {_CONSOLE: pty.slave, **unseen.fds}
        fds = list(consoles.values())
        parameters = [f"con{number}=fd:{fd},fd:{fd}" for number, fd in consoles.items()]
        if spec.network == "user":
            card = await stack.enter_async_context(network.user_network(_say))
            fds.append(card.fileno())
            parameters.append(network.uml_parameter(card.fileno()))
        boxed = await trio.to_thread.run_sync(
            _sandboxed_kernel, spec, kernel, directory, parameters
        )
        process = await stack.enter_async_context(
            sandbox.running(boxed, pass_fds=fds, output=native.write_end, cpu=spec.cpu)
        )
        pty.close_slave()
        native.close_write_end()
        guest = RunningGuest(process, pty, directory)
        silence = Silence(transcript, _say)

        def on_output(data: bytes) -> None:
            transcript.take(data)
            silence.heard()
            if on_console is not None:
                on_console(data)

        with (
            plain_errors(),
            counted_signals(
                signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH
            ) as signals,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(native.collect)
                nursery.start_soon(unseen.drop_output)
                nursery.start_soon(_obey_signals, signals, guest, pty)
                if spec.console == "stdio":
                    if console.is_our_terminal(_STDIN):
                        stack.enter_context(console.guest_keys(_STDIN))
                    nursery.start_soon(console.forward_input, pty, _STDIN)
                    nursery.start_soon(silence.watch)
                task_status.started(guest)
                await console.pump(pty, spec.console, on_output)
                exit_code = await process.wait()
                nursery.cancel_scope.cancel()
    seconds = trio.current_time() - started
    code, reason = _ending(guest, transcript, native, exit_code)
    return GuestResult(code, reason, kernel, seconds, transcript.boot_seconds)


def _guest_directory(stack: AsyncExitStack) -> Path:
    """Make a directory that is handed in: others cannot come to it, and whoever runs the sandbox,
    which root leaves to another user, can read it."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pcloop-"))) / "guest"
    directory.mkdir()
    directory.chmod(0o755)
    return directory


def _sandboxed_kernel(
    spec: GuestSpec, kernel: Kernel, directory: Path, parameters: list[str]
) -> sandbox.Sandbox:
    """Return the command that boots; puts what it needs into `directory`."""
    initrd = directory / "initramfs.cpio"
    initrd.write_bytes(spec.initramfs(kernel))
    initrd.chmod(0o644)
    empty = directory / "empty"
    empty.mkdir()
    empty.chmod(0o755)
    sockets = {_SOCKETS / str(n): disk.absolute() for n, disk in enumerate(spec.disks)}
    visible = sandbox.program_files(kernel.path) | sockets
    # Answers of the management console go to a socket in it, by the name that we bound.
    visible[directory] = directory
    environment = {"HOME": "/", "PATH": "/usr/bin"}
    if xsave.is_needed(kernel):
        visible[_SHIM] = xsave.compiled_shim()
        environment["LD_PRELOAD"] = str(_SHIM)
    words = [
        str(kernel.path),
        f"mem={spec.memory >> 10}K",
        # In their order: the first one is /dev/vda.
        *(f"virtio_uml.device={socket}:{virtio_blk.DEVICE_ID}" for socket in sockets),
        f"initrd={initrd}",
        *("root=/dev/vda", "ro" if spec.read_only else "rw"),
        *("con=null", *parameters, f"console=tty{_CONSOLE}", *_terminal_type(spec)),
        *(f"uml_dir={_UML_DIRECTORY}", f"umid={_UMID}", f"hostfs={empty}"),
        # A reboot and a panic end the program.
        *("noreboot", "panic=1", *kernel.parameters),
        *spec.append_words(),
    ]
    tmpfs = {"/run": _RUN_SIZE, "/dev/shm": spec.memory + _MEMORY_SLACK}  # noqa: S108  inside
    return sandbox.prepare(
        words,
        visible=visible,
        memory=2 * spec.memory + _NATIVE_MEMORY,
        processes=spec.memory // _MEMORY_PER_TASK + _NATIVE_TASKS,
        tmpfs=tmpfs,
        environment=environment,
    )


def _terminal_type(spec: GuestSpec) -> list[str]:
    """The kernel hands TERM to init, and systemd to the console's login."""
    kind = os.environ.get("TERM", "")
    if spec.console == "stdio" and os.isatty(_STDIN) and re.fullmatch(r"[\w.+-]{1,32}", kind):
        return [f"TERM={kind}"]
    return []


async def _obey_signals(signals: AsyncIterator[int], guest: RunningGuest, pty: console.Pty) -> None:
    async with trio.open_nursery() as nursery:
        async for number in signals:
            if number == signal.SIGWINCH:
                pty.copy_window_size(_STDIN)
                continue
            # A shell whose terminal closes may send SIGHUP besides the system: it counts once.
            if number != signal.SIGHUP or not guest.shutdown_asked:
                # The next signal is heard while the guest's answer is waited for.
                nursery.start_soon(_shut_down, guest)
            if number != signal.SIGINT:
                nursery.start_soon(_end_late, guest)


async def _shut_down(guest: RunningGuest) -> None:
    """Do what Ctrl-C asks for, and say what was done."""
    if guest.killed:
        return
    await guest.shutdown()
    _say("is ended" if guest.killed else "shuts down (again: end it)")


async def _end_late(guest: RunningGuest) -> None:
    """End a guest that does not shut down; its own end cancels this."""
    await trio.sleep(SHUTDOWN_SECONDS)
    if not guest.killed:
        guest.kill()
        _say(f"did not shut down within {SHUTDOWN_SECONDS:g} s and is ended")


def _say(done: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        # The terminal makes no carriage returns while it is the guest's.
        sys.stderr.write(f"\r\np2pcloop: the guest {printable(done)}\r\n")
        sys.stderr.flush()


def _ending(
    guest: RunningGuest, transcript: Transcript, native: NativeOutput, code: int
) -> tuple[int, Reason]:
    if guest.killed:
        return code, "killed"
    if (failure := transcript.initramfs_failure()) is not None:
        raise GuestError(f"the guest cannot boot: {failure}")
    if not transcript.tail:
        raise GuestError(
            f"the kernel did not start (exit status {code}): {native.last_words}",
            hint="is there room for the guest's memory?",
        )
    reason = transcript.ending(code)
    if reason in ("poweroff", "reboot"):
        return 0, reason
    # A kernel that ends with 0 but never said that it goes down did not end well.
    return code or 1, reason
