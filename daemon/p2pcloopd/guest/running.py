"""A guest that runs, in the hands of its owner: typing, shutting down, killing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import trio

from p2pcloop.errors import FormatError, GuestError
from p2pcloopd.guest import mconsole
from p2pcloopd.guest.console import console
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.uml_kernel import MANAGEMENT_SOCKET

_STDIN = 0

Interrupt = Callable[[int], bool]
"""Hands a signal on to the command in a guest; returns False if no command takes it yet."""


class RunningGuest:
    """A guest while it runs, across its reboots, as its owner can act on it.

    Attributes:
        shutdown_asked: whether it was asked to shut down.
        killed: whether it was ended at once rather than shut down.
    """

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self.shutdown_asked = False
        self._interrupt = interrupt
        self.killed = False
        self._process: SandboxedProcess | None = None
        self._pty: console.Pty | None = None
        self._has_pty = trio.Event()
        self._size: bytes | None = None
        self._reply = Path()
        self._ring: Callable[[], None] | None = None
        self._is_woken = False
        self._heard = trio.Event()
        self._pressing = trio.Lock()  # the answer comes to one socket

    def runs_as(
        self,
        process: SandboxedProcess,
        pty: console.Pty,
        directory: Path,
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the process and pty of this boot, and what rings its agent's bell. If the guest was
        to end before, it ends now."""
        self._process = process
        self._ring = ring
        if self._is_woken:
            ring()
        self._pty = pty
        self._has_pty.set()
        if self._size is not None:
            pty.set_size(self._size)
        self._reply = directory / "reply"
        if self.shutdown_asked or self.killed:
            self.kill()

    def heard(self) -> None:
        """Record that the guest has printed something."""
        self._heard.set()
        self._heard = trio.Event()

    def rests(self) -> None:
        """Let go of the pty of a boot that has ended, before it is closed."""
        if self._pty is not None:
            self._pty.release()
        self._pty = None
        self._ring = None
        self._has_pty = trio.Event()

    def wake_agent(self) -> None:
        """Have the guest's agent open its channel, in this boot and in later ones."""
        if not self._is_woken and self._ring is not None:
            self._ring()
        self._is_woken = True

    async def send_console(self, data: bytes) -> None:
        """Type `data` on the guest's keyboard; between two boots, wait for the next one."""
        while self._pty is None:
            await self._has_pty.wait()
        await self._pty.send(data)

    def copy_window_size(self) -> None:
        """Give the guest's console the size of our terminal."""
        if self._pty is not None:
            self._pty.copy_window_size(_STDIN)

    def set_window_size(self, size: bytes) -> None:
        """Give the guest's console a size: a struct winsize (tty_ioctl(4)). Later boots have it,
        too."""
        self._size = size
        if self._pty is not None:
            self._pty.set_size(size)

    async def shutdown(self, number: int = signal.SIGTERM) -> bool:
        """Press Ctrl-Alt-Del: the image's init shuts down in order. At a second call, or if UML
        does not answer properly, the guest ends at once.

        Returns once the guest's kernel has taken it, which it does once it has set itself up.

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
        return await self.press_keys()

    async def press_keys(self) -> bool:
        """Press Ctrl-Alt-Del of a guest that was asked to shut down; returns as `shutdown` does."""
        while self._process is not None and not self.killed:
            heard = self._heard
            root = Path(f"/proc/{self._process.init_pid}/root")
            try:
                async with self._pressing:
                    await mconsole.send_command(root, MANAGEMENT_SOCKET, self._reply, "cad")
            except mconsole.NotThereError:
                await heard.wait()  # its kernel, and then its first root, print what they do
            except (GuestError, FormatError):
                self.kill()
            else:
                return True
        return False

    def kill(self) -> None:
        """End the guest at once, as pulling the plug does."""
        self.killed = True
        if self._process is not None:
            self._process.kill()
