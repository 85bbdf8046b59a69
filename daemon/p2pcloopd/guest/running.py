"""A guest that runs, in the hands of its owner: typing, shutting down, killing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio

from p2pcloop.errors import FormatError, GuestError
from p2pcloopd.guest.machine.machine import Boot
from p2pcloopd.guest.machine.mconsole import NotThereError

if TYPE_CHECKING:
    from p2pcloopd.guest.machine.capture import Capture

_STDIN = 0

Interrupt = Callable[[int], bool]
"""Hands a signal on to the command in a guest; returns False if no command takes it yet."""


class RunningGuest:
    """A guest while it runs, across its reboots, as its owner can act on it.

    Attributes:
        shutdown_asked: whether it was asked to shut down.
        killed: whether it was ended at once rather than shut down.
        state: the name and version of the state that it was suspended as last, or None.
    """

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self.shutdown_asked = False
        self._interrupt = interrupt
        self.killed = False
        self.state: tuple[str, int] | None = None
        self._boot: Boot | None = None
        self._begun = trio.Event()
        self._size: bytes | None = None
        self._is_woken = False
        self._heard = trio.Event()
        self._pressing = trio.Lock()  # the answer comes to one socket

    def runs_as(self, boot: Boot) -> None:
        """Set the boot that runs now. If the guest was to end before, it ends now."""
        self._boot = boot
        if self._is_woken:
            boot.ring()
        self._begun.set()
        if self._size is not None:
            boot.console.set_size(self._size)
        if self.shutdown_asked or self.killed:
            self.kill()

    def heard(self) -> None:
        """Record that the guest has printed something."""
        self._heard.set()
        self._heard = trio.Event()

    def rests(self) -> None:
        """Let go of a boot that has ended, before its console is closed."""
        if self._boot is not None:
            self._boot.console.release()
        self._boot = None
        self._begun = trio.Event()

    def wake_agent(self) -> None:
        """Have the guest's agent open its channel, in this boot and in later ones."""
        if not self._is_woken and self._boot is not None:
            self._boot.ring()
        self._is_woken = True

    async def send_console(self, data: bytes) -> None:
        """Type `data` on the guest's keyboard; between two boots, wait for the next one."""
        while self._boot is None:
            await self._begun.wait()
        await self._boot.console.send(data)

    def copy_window_size(self) -> None:
        """Give the guest's console the size of our terminal."""
        if self._boot is not None:
            self._boot.console.copy_window_size(_STDIN)

    def set_window_size(self, size: bytes) -> None:
        """Give the guest's console a size: a struct winsize (tty_ioctl(4)). Later boots have it,
        too."""
        self._size = size
        if self._boot is not None:
            self._boot.console.set_size(size)

    def captured(self) -> AbstractAsyncContextManager[Capture]:
        """Stop the guest, and give all that it needs to go on elsewhere; see `Boot`.

        Raises:
            GuestError: it does not run, or as of `Boot`.
        """
        if self._boot is None:
            raise GuestError("the guest does not run: it reboots, or ends")
        return self._boot.captured()

    async def shutdown(self, number: int = signal.SIGTERM) -> bool:
        """Press Ctrl-Alt-Del: the image's init shuts down in order. At a second call, or if the
        machine does not answer properly, the guest ends at once.

        Returns once the guest's kernel has taken it, which it does once it has set itself up.

        Args:
            number: the signal that asks for it.

        Returns:
            Whether it shuts down in order.
        """
        if self.shutdown_asked or self._boot is None:
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
        while self._boot is not None and not self.killed:
            heard = self._heard
            try:
                async with self._pressing:
                    await self._boot.press_ctrl_alt_del()
            except NotThereError:
                await heard.wait()  # its kernel, and then its first root, print what they do
            except (GuestError, FormatError):
                self.kill()
            else:
                return True
        return False

    def kill(self) -> None:
        """End the guest at once, as pulling the plug does."""
        self.killed = True
        if self._boot is not None:
            self._boot.process.kill()
