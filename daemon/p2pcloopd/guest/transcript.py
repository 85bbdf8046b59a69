"""A guest's output, from which it is told when the guest was up and how it ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

from p2pcloopd.guest.result import Reason
from p2pcloopd.guest.system.initramfs import ADDRESS_MARK, FAILURE_MARK, START_MARK

_TAIL = 8192
PROMPT = re.compile(rb"login: ?")
_FAILURE = re.compile(rb"^" + re.escape(FAILURE_MARK.encode()) + rb"(.*?)\r*$", re.MULTILINE)
_STARTED = re.compile(rb"^" + re.escape(START_MARK.encode()) + rb"(.*?)\r*$", re.MULTILINE)
_ADDRESS = re.compile(
    rb"^" + re.escape(ADDRESS_MARK.encode()) + rb"([0-9.]{7,15})/[0-9]{1,2}\r*\n", re.MULTILINE
)
CONTROLS = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[^\[]|[\x00-\x09\x0b-\x1f]")
_PANIC = b"Kernel panic - not syncing"
_NO_DISK = re.compile(rb"EXT4-fs error|I/O error|IO failure|Aborting journal|Bus error")
_ABORTED = 128 + signal.SIGABRT
# UML has no power switch: its kernel makes a power-off a halt before it says so.
_HALTED = b"reboot: System halted"
_ENDINGS: dict[bytes, Reason] = {
    b"reboot: Power down": "poweroff",
    _HALTED: "poweroff",
    b"reboot: Restarting system": "reboot",
}


class Transcript:
    """Follows the console's output and keeps its last 8 KiB.

    Attributes:
        tail: the last bytes printed.
        prompt_time: `clock()` at the first login prompt, or None.
        started: the init that was handed over to, as the initramfs names it; "" before.
    """

    def __init__(
        self, clock: Callable[[], float], on_address: Callable[[str], object] = str
    ) -> None:
        """Take nothing yet.

        Args:
            clock: tells the time.
            on_address: called with the address that a DHCP server gave the initramfs.
        """
        self._clock = clock
        self._on_address = on_address
        self.tail = b""
        self.prompt_time: float | None = None
        self.started = ""

    def take(self, data: bytes) -> bool:
        """Add what was printed next; return whether that showed the first login prompt."""
        before = self.tail.rfind(b"\n") + 1  # earlier lines were looked at
        text = self.tail[before:] + data
        self.tail = (self.tail + data)[-_TAIL:]
        # What the image's programs print later does not count.
        if not self.started and (found := _ADDRESS.search(text)):
            self._on_address(found[1].decode())
        if not self.started and (found := _STARTED.search(text)):
            self.started = found[1].decode(errors="replace")
        if self.prompt_time is None and PROMPT.search(text):
            self.prompt_time = self._clock()
            return True
        return False

    def asks(self) -> bool:
        """Whether the last line is unfinished, as a prompt is."""
        text = CONTROLS.sub(b"", self.tail)
        return bool(text) and not text.endswith(b"\n")

    def ending(self, exit_code: int) -> Reason:
        """Tell how the guest ended. A guest may print anything, so the exit code decides whether
        the end was a good one; of the kernel's messages the last one counts."""
        said = {self.tail.rfind(message): reason for message, reason in _ENDINGS.items()}
        last = max(said)
        # After this message the guest has let go of its disk. UML 6.1 was seen to abort then. A
        # program that still runs for a moment may also fail for the lack of the disk; if init does,
        # the kernel panics. The guest is down all the same.
        behind = self.tail[last:].partition(b"\n")[2].strip()
        is_down = last >= 0 and (not behind or _NO_DISK.search(behind) is not None)
        if exit_code == 0 or (exit_code == _ABORTED and is_down):
            return said[last] if last >= 0 else "crash"
        return "panic" if _PANIC in self.tail else "crash"

    def says_down(self) -> bool:
        """Whether the kernel, or a program in its name, has said that the guest is down."""
        return any(message in self.tail for message in _ENDINGS)

    def panicked(self) -> bool:
        """Whether the kernel's last message was a panic."""
        orderly = max(self.tail.rfind(message) for message in _ENDINGS)
        return self.tail.rfind(_PANIC) > orderly

    def halted(self) -> bool:
        """Whether the last line says that the kernel has halted."""
        return self.tail.rstrip().endswith(_HALTED)

    def initramfs_failure(self) -> str | None:
        """Return why the initramfs gave up, or None if it did not."""
        found = _FAILURE.search(self.tail)
        return found[1].decode(errors="replace") if found else None
