"""User-Mode Linux as a machine: a Linux kernel that is a program of this machine."""

from __future__ import annotations

import signal
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pcloop.errors import UsageError
from p2pcloopd.guest.console.console import Pty, UnseenConsoles
from p2pcloopd.guest.console.messages import say
from p2pcloopd.guest.machine import mconsole
from p2pcloopd.guest.machine.uml_kernel import CONSOLE, MANAGEMENT_SOCKET, sandboxed_kernel
from p2pcloopd.guest.network.taps import forget_offloads
from p2pcloopd.guest.result import Reason
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.initramfs import BELL_CONSOLE
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.transcript import Transcript

if TYPE_CHECKING:
    from p2pcloopd.guest.machine.capture import Capture

_STDIN = 0
_UNSEEN_CONSOLES = range(2, BELL_CONSOLE)

_KILLED = 128 + signal.SIGKILL

_EXIT_SECONDS = 0.8
"""A kernel that is down has ended by then, or waits for ever. Before what it prints meanwhile is
shown (quiet_end.HELD_SECONDS)."""


@dataclass(slots=True)
class UmlBoot:
    """A kernel that runs; see `Boot`.

    Kernel 7.2 resets its disks before it ends, and removes them at its end. The removal waits for
    requests that were on their way, which are not answered any more: such a kernel is ended here.
    Nothing is lost, since the guest was told of none of them that it was done.

    Attributes:
        directory: of the host, which the kernel sees under the same name.
        unseen: its consoles that are not shown; None in tests.
    """

    process: SandboxedProcess
    console: Pty
    directory: Path
    unseen: UnseenConsoles | None = None
    _says_down: trio.Event = field(default_factory=trio.Event, init=False)
    _is_down: bool = field(default=False, init=False)

    async def attend(self) -> None:
        """Drop what is printed where it is not shown, and end a kernel that is down."""
        async with trio.open_nursery() as nursery:
            if self.unseen is not None:
                nursery.start_soon(self.unseen.drop_output)
            nursery.start_soon(self._end_what_is_down)

    async def _end_what_is_down(self) -> None:
        while not self._is_down:
            await self._says_down.wait()
            await trio.sleep(_EXIT_SECONDS)
            # Any program may say so. What it cannot do is to remove the management console.
            self._is_down = not mconsole.is_there(self._root, MANAGEMENT_SOCKET)
        self.process.kill()

    @property
    def _root(self) -> Path:
        """UML's root directory, as this process sees it."""
        return Path(f"/proc/{self.process.init_pid}/root")

    async def settle(self) -> None:
        """Do nothing: the kernel says all on its console."""

    def ring(self) -> None:
        """Have the agent open its channel."""
        if self.unseen is not None:
            self.unseen.ring()

    def heard(self, transcript: Transcript) -> None:
        """Look whether the kernel is down; see `Boot`."""
        if transcript.says_down():
            self._says_down.set()
        elif self._says_down.is_set():  # a program did, long ago
            self._says_down = trio.Event()

    def captured(self) -> AbstractAsyncContextManager[Capture]:
        """Refuse; see `Boot`."""
        raise UsageError(
            "a guest in User-Mode Linux cannot be suspended: it is spread over processes of this"
            " machine",
            hint="boot it with --vm qemu",
        )

    async def press_ctrl_alt_del(self) -> None:
        """Press the keys through the management console."""
        reply = self.directory / "reply"
        await mconsole.send_command(self._root, MANAGEMENT_SOCKET, reply, "cad")

    def ending(self, transcript: Transcript, exit_code: int) -> tuple[int, Reason]:
        """Tell by the kernel's last message; see `Boot`."""
        is_ended = self._is_down and exit_code == _KILLED
        reason = transcript.ending(0 if is_ended else exit_code)
        if reason in ("poweroff", "reboot"):
            return 0, reason
        # A kernel that ends with 0 but never said that it goes down did not end well.
        return exit_code or 1, reason


@dataclass(frozen=True, slots=True)
class UmlMachine:
    """See `Machine`."""

    kernel: Kernel
    name: str = "uml"
    remark: str = ""

    async def start(self, spec: GuestSpec, native: NativeOutput, stack: AsyncExitStack) -> UmlBoot:
        """Start the kernel; see `Machine`."""
        pty = Pty()
        stack.callback(pty.close)
        if spec.console == "stdio":
            pty.copy_window_size(_STDIN)
        unseen = UnseenConsoles(_UNSEEN_CONSOLES, BELL_CONSOLE)
        stack.callback(unseen.close)
        consoles = {CONSOLE: pty.slave, **unseen.fds}
        fds = list(consoles.values())
        parameters = [f"con{number}=fd:{fd},fd:{fd}" for number, fd in consoles.items()]
        for fd, parameter in await _cards(spec, stack):
            fds.append(fd)
            parameters.append(parameter)
        files = stack.enter_context(ExitStack())
        boxed, directory = await trio.to_thread.run_sync(
            sandboxed_kernel, spec, self.kernel, parameters, files
        )
        process = await stack.enter_async_context(
            sandbox.running(boxed, pass_fds=fds, output=native.write_end, cpu=spec.cpu)
        )
        pty.close_slave()
        return UmlBoot(process, pty, directory, unseen)


async def _cards(spec: GuestSpec, stack: AsyncExitStack) -> list[tuple[int, str]]:
    """The descriptor of each network card, and the kernel's parameter that makes it one."""
    cards: list[tuple[int, str]] = []
    if spec.network == "user":
        from p2pcloopd.guest.network import slirp as network  # noqa: PLC0415  few guests have one

        card = await stack.enter_async_context(
            network.user_network(say, ports=spec.forwarded, opened=spec.opened)
        )
        cards.append((card.fileno(), network.uml_parameter(card.fileno())))
    elif spec.card is not None:
        forget_offloads(spec.card.tap)
        cards.append((spec.card.tap, spec.card.uml_parameter))
    if spec.display is not None:
        from p2pcloopd.guest.display import wire  # noqa: PLC0415  as above

        card = await stack.enter_async_context(wire.display_wire(spec.display, say))
        cards.append((card.fileno(), wire.uml_parameter(card.fileno())))
    return cards
