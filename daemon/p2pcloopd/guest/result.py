"""How a guest ended."""

from __future__ import annotations

from typing import Literal

from p2pcloop.frozen import dataclass
from p2pcloopd.guest.system.kernel import Kernel

Reason = Literal["poweroff", "reboot", "panic", "crash", "killed", "done", "suspended"]

StateName = tuple[str, int]
"""The name and the version of a state."""


@dataclass(frozen=True, slots=True)
class GuestResult:
    """How a guest ended.

    Attributes:
        exit_code: 0 after an orderly end; otherwise the machine's exit status, or 128 + the signal.
        reason: what ended it. A halt counts as `poweroff` (UML does not tell them apart); `crash`
            is a kernel that ended without saying why, `done` the end of the command that the guest
            was for, `suspended` that of a guest that goes on elsewhere.
        kernel: the kernel that it ran; None for one of its disk's own.
        seconds: from the call to the end.
        boot_seconds: from the call to the first login prompt, or None if there was none.
        reboots: how often it was started again.
        machine: what it ran on; see `Machine`.
        state: the state that it was suspended as last, or None.
    """

    exit_code: int
    reason: Reason
    kernel: Kernel | None
    seconds: float
    boot_seconds: float | None
    reboots: int = 0
    machine: str = "uml"
    state: StateName | None = None
