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
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pcloop.errors import FormatError, GuestError
from p2pcloop.protocol import virtio_blk, virtio_console
from p2pcloop.store.socket_path import socket_folder
from p2pcloop.text import printable
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest import console, mconsole, network, sandbox, xsave
from p2pcloopd.guest.escape import HELP, Command
from p2pcloopd.guest.kernel import Kernel, find_kernel
from p2pcloopd.guest.keyboard import Keyboard
from p2pcloopd.guest.native_output import NativeOutput
from p2pcloopd.guest.prompts import PromptWatch
from p2pcloopd.guest.sandbox import SandboxedProcess
from p2pcloopd.guest.signals import counted_signals
from p2pcloopd.guest.silence import Silence
from p2pcloopd.guest.spec import GuestResult, GuestSpec, Reason
from p2pcloopd.guest.transcript import Transcript

SHUTDOWN_SECONDS = 60.0
"""A guest that was asked to shut down and hangs is ended after this: it may wait for data of peers
that are gone, and the sender of the signal may not come back."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGCONT)

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
_PORTS = Path("/run/ports")
_SHIM = Path("/run/xsave.so")
_UML_DIRECTORY = "/run/uml"
_UMID = "guest"


Interrupt = Callable[[int], bool]
"""Hands a signal on to what runs in a guest; False where nothing there can take it yet."""


class RunningGuest:
    """A guest while it runs, also across its reboots: what its owner may do to it.

    Attributes:
        shutdown_asked: it was asked to shut down.
        killed: it was ended at once rather than shut down.
    """

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self.shutdown_asked = False
        self._interrupt = interrupt
        self.killed = False
        self._process: SandboxedProcess | None = None
        self._pty: console.Pty | None = None
        self._reply = Path()

    def runs_as(self, process: SandboxedProcess, pty: console.Pty, directory: Path) -> None:
        """Tell what it runs as from now on. What was asked of it before holds."""
        self._process = process
        self._pty = pty
        self._reply = directory / "reply"
        if self.shutdown_asked or self.killed:
            self.kill()

    async def send_console(self, data: bytes) -> None:
        """Type `data` on the guest's keyboard."""
        assert self._pty is not None
        await self._pty.send(data)

    def copy_window_size(self) -> None:
        """Give the guest's console the size of our terminal."""
        if self._pty is not None:
            self._pty.copy_window_size(_STDIN)

    async def shutdown(self, number: int = signal.SIGTERM) -> bool:
        """Press Ctrl-Alt-Del: the image's init shuts down in order. Asked again, or where no
        proper answer comes back, the guest ends at once.

        Args:
            number: the signal that asks for it.

        Returns:
            Whether it shuts down in order.
        """
        if self.shutdown_asked or self._process is None:
            self.kill()
            return False
        self.shutdown_asked = True
        if self._interrupt is not None:
            if not self._interrupt(number):
                self.kill()
            return not self.killed
        root = Path(f"/proc/{self._process.init_pid}/root")
        socket = Path(_UML_DIRECTORY, _UMID, "mconsole")
        try:
            await mconsole.send_command(root, socket, self._reply, "cad")
        except (GuestError, FormatError):
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """End the guest at once, as pulling the plug does."""
        self.killed = True
        if self._process is not None:
            self._process.kill()


async def run_guest(
    spec: GuestSpec,
    *,
    on_console: Callable[[bytes], None] | None = None,
    on_boot: Callable[[], None] | None = None,
    interrupt: Interrupt | None = None,
    task_status: trio.TaskStatus[RunningGuest] = trio.TASK_STATUS_IGNORED,
) -> GuestResult:
    """Boot a guest and return when it has ended.

    While it runs this owns SIGINT and SIGTERM (the first shuts the guest down in order, the second
    ends it), SIGHUP (shuts it down) and, with console `stdio`, the terminal. A guest that goes on
    for `SHUTDOWN_SECONDS` after it was asked to shut down is ended. It must be called from the main
    thread. Cancelled, it kills the guest; however it is left, no process of the guest is.

    Args:
        on_console: called with every piece of what the guest prints.
        on_boot: called before each start of the kernel: the first, and those of reboots.
        interrupt: asks the guest to end, in place of Ctrl-Alt-Del.
        task_status: gets the `RunningGuest` once it runs.

    Raises:
        UsageError: the spec cannot be meant.
        NeedsPackageError: a program or file of the system is missing.
        GuestError: the kernel does not start, or finds no root on the disk.
        StorageError: the console's file cannot be written.
    """
    started = trio.current_time()
    spec.check()
    kernel = await trio.to_thread.run_sync(find_kernel, spec.kernel)
    with plain_errors(), ExitStack() as stack:
        # Given back last: no signal may end us while the terminal is the guest's.
        signals = stack.enter_context(counted_signals(*_SIGNALS))
        async with trio.open_nursery() as nursery:
            attended = _Attended(spec, stack, nursery, on_console, interrupt)
            nursery.start_soon(attended.obey_signals, signals)
            if attended.keyboard is not None:
                nursery.start_soon(attended.keyboard.read)
            reboots, boot_seconds = 0, None
            while True:
                if on_boot is not None:
                    on_boot()
                begun = trio.current_time() - started
                end = await attended.boot(kernel, task_status if not reboots else None)
                if boot_seconds is None and end.prompt_seconds is not None:
                    boot_seconds = begun + end.prompt_seconds
                if not (spec.reboot and end.reason == "reboot" and not attended.is_ending):
                    break
                reboots += 1
            nursery.cancel_scope.cancel()
    seconds = trio.current_time() - started
    return GuestResult(end.exit_code, end.reason, kernel, seconds, boot_seconds, reboots)


@dataclass(frozen=True, slots=True)
class _End:
    """How one boot of a guest ended; seconds count from that boot's start."""

    exit_code: int
    reason: Reason
    prompt_seconds: float | None


class _Attended:
    """A guest and who attends to it: signals, the terminal or pipe that it is typed on, the sink of
    its output.

    Attributes:
        keyboard: None where nothing is typed.
    """

    def __init__(
        self,
        spec: GuestSpec,
        stack: ExitStack,
        nursery: trio.Nursery,
        on_console: Callable[[bytes], None] | None,
        interrupt: Interrupt | None,
    ) -> None:
        self.keyboard: Keyboard | None = None
        self._spec = spec
        self._nursery = nursery
        self._on_console = on_console
        self._interrupt = interrupt
        self._guest = RunningGuest(interrupt)
        self._set_up_terminal: Callable[[], None] = lambda: None
        if spec.console == "stdio":
            ours = console.is_our_terminal(_STDIN)
            if ours:
                self._set_up_terminal = stack.enter_context(console.guest_keys(_STDIN))
            self.keyboard = Keyboard(_STDIN, on_command=self._take_command if ours else None)
        self._sink = console.Sink(spec.console)
        stack.callback(self._sink.close)

    @property
    def is_ending(self) -> bool:
        """Whether the guest was asked to end."""
        return self._guest.shutdown_asked or self._guest.killed

    async def boot(self, kernel: Kernel, task_status: trio.TaskStatus[RunningGuest] | None) -> _End:
        """Run the guest's kernel once, to its end."""
        started = trio.current_time()
        transcript = Transcript(lambda: trio.current_time() - started)
        watch, silence = PromptWatch(), Silence(transcript, _say)
        native = NativeOutput()

        def on_output(data: bytes) -> None:
            transcript.take(data)
            watch.take(data)
            silence.heard()
            if self._on_console is not None:
                self._on_console(data)

        async with AsyncExitStack() as stack:
            stack.callback(native.close)
            process, pty, unseen = await self._start(kernel, native, stack)
            if task_status is not None:
                task_status.started(self._guest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(native.collect)
                nursery.start_soon(unseen.drop_output)
                if self.keyboard is not None:
                    nursery.start_soon(silence.watch)
                    nursery.start_soon(self._type, self.keyboard, pty, watch)
                await console.pump(pty, self._sink, on_output)
                exit_code = await process.wait()
                nursery.cancel_scope.cancel()
        return _End(*_ending(self._guest, transcript, native, exit_code), transcript.boot_seconds)

    async def _start(
        self, kernel: Kernel, native: NativeOutput, stack: AsyncExitStack
    ) -> tuple[SandboxedProcess, console.Pty, console.UnseenConsoles]:
        spec = self._spec
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
        self._guest.runs_as(process, pty, directory)
        return process, pty, unseen

    async def _type(self, keyboard: Keyboard, pty: console.Pty, watch: PromptWatch) -> None:
        await keyboard.type_on(pty, watch)
        if not self.is_ending:
            _say("has read all of its input")
            await self._shut_down()

    def _take_command(self, command: Command) -> None:
        if command == "shutdown":
            self._nursery.start_soon(self._shut_down)
        elif command == "kill":
            self._guest.kill()
            _say("is ended")
        else:
            _tell(HELP)

    async def obey_signals(self, signals: AsyncIterator[int]) -> None:
        """Do what signals ask for, until cancelled."""
        async for number in signals:
            if number in (signal.SIGWINCH, signal.SIGCONT):
                if number == signal.SIGCONT and console.is_our_terminal(_STDIN):
                    self._set_up_terminal()
                self._guest.copy_window_size()
            # A shell whose terminal closes may send SIGHUP besides the system: it counts once.
            elif number != signal.SIGHUP or not self.is_ending:
                # The next signal is heard while the guest's answer is waited for.
                self._nursery.start_soon(self._shut_down, number)

    async def _shut_down(self, number: int = signal.SIGTERM) -> None:
        """Shut the guest down in order, or end it where that was asked for before."""
        if self._guest.killed:
            return
        if not self._guest.shutdown_asked:
            self._nursery.start_soon(self._end_late)
        if not await self._guest.shutdown(number):
            _say("is ended")
        elif self._interrupt is None:
            _say(f"shuts down (again: end it; it is ended after {SHUTDOWN_SECONDS:g} s)")

    async def _end_late(self) -> None:
        """End a guest that does not shut down; its own end cancels this."""
        await trio.sleep(SHUTDOWN_SECONDS)
        if not self._guest.killed:
            self._guest.kill()
            _say(f"did not shut down within {SHUTDOWN_SECONDS:g} s and is ended")


def _guest_directory(stack: AsyncExitStack) -> Path:
    """Make a directory that is handed in: others cannot come to it, and the sandbox's user,
    which root leaves to another user, can read it."""
    made = tempfile.TemporaryDirectory(prefix="p2pcloop-", dir=socket_folder())
    directory = Path(stack.enter_context(made)) / "guest"
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
    devices = [f"virtio_uml.device={socket}:{virtio_blk.DEVICE_ID}" for socket in sockets]
    if spec.ports_socket is not None:
        visible[_PORTS] = spec.ports_socket.absolute()
        devices.append(f"virtio_uml.device={_PORTS}:{virtio_console.DEVICE_ID}")
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
        *devices,
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


def _say(done: str) -> None:
    _tell(f"p2pcloop: the guest {printable(done)}")


def _tell(text: str) -> None:
    # The guest may be in the middle of a line, and its terminal makes no carriage returns.
    end = "\r\n" if sys.stderr.isatty() else "\n"
    lines = ["" if sys.stderr.isatty() else None, *text.splitlines(), ""]
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(end.join(line for line in lines if line is not None))
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
