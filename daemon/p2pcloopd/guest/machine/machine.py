"""What a machine is to the rest of a guest: `Machine` starts a boot, `Boot` is one that runs.

A guest has one machine, and boots on it once, and again after each reboot. Its disks, its first
root, its console and its life are the same on each machine (docs/guest.md, "Two machines").
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Protocol

from p2pcloopd.guest.result import Reason
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.transcript import Transcript

if TYPE_CHECKING:
    from p2pcloopd.guest.machine.capture import Capture


class Console(Protocol):
    """The console of a boot, as the user's side of it: a `Pty` or a `SerialLine`."""

    async def receive(self) -> bytes:
        """Return what the guest prints next; empty once it has ended."""

    async def send(self, data: bytes) -> None:
        """Type `data`; waits while the guest does not read."""

    def release(self) -> None:
        """Have all who wait to send return."""

    def copy_window_size(self, terminal: int) -> None:
        """Give the console the size of a terminal of this process."""

    def set_size(self, size: bytes) -> None:
        """Give the console a size: a struct winsize (tty_ioctl(4))."""


class Boot(Protocol):
    """One boot of a guest, from the start of its kernel to its end.

    Attributes:
        process: the sandbox round the machine.
        console: of the guest.
    """

    @property
    def process(self) -> SandboxedProcess: ...

    @property
    def console(self) -> Console: ...

    async def attend(self) -> None:
        """Do what the machine needs while it runs; cancelled at its end."""

    async def settle(self) -> None:
        """Take what the machine said at its end; called once its process has ended."""

    def ring(self) -> None:
        """Have the guest's agent open its channel."""

    def heard(self, transcript: Transcript) -> None:
        """Take notice of what the guest has printed."""

    def captured(self) -> AbstractAsyncContextManager[Capture]:
        """Stop the guest, and give all that it needs to go on elsewhere. At the end of the context
        it goes on, unless it was ended; so it does after an error and a cancellation.

        Raises:
            UsageError: such a machine cannot be suspended.
            BusyError: it is suspended or resumed already.
            GuestError: the machine does not answer, refuses, or has ended.
        """

    async def press_ctrl_alt_del(self) -> None:
        """Press these keys.

        Raises:
            GuestError, FormatError: the machine does not answer, or not properly.
        """

    def ending(self, transcript: Transcript, exit_code: int) -> tuple[int, Reason]:
        """Return the exit code and the reason of a boot that has ended by itself.

        Args:
            transcript: what the guest has printed.
            exit_code: of the machine's process.
        """


class Machine(Protocol):
    """A kind of machine, for one guest.

    Attributes:
        name: for people, and for reports: "uml", "qemu (tcg)".
        kernel: what boots; None where the disk brings a kernel of its own.
        remark: what a user should know of it, without its subject, the guest; "" for nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def kernel(self) -> Kernel | None: ...

    @property
    def remark(self) -> str: ...

    async def start(self, spec: GuestSpec, native: NativeOutput, stack: AsyncExitStack) -> Boot:
        """Start a boot.

        Args:
            spec: the guest.
            native: gets what the machine's program itself prints.
            stack: ends the boot, and gives back all that it needs.

        Raises:
            NeedsPackageError: a program or file of the system is missing.
            GuestError: it does not start.
        """
