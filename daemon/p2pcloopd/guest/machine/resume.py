"""What a guest goes on with that was suspended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import field
from pathlib import Path

import trio

from p2pcloop.formats.machine_state import MachineState
from p2pcloop.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Resume:
    """What a guest goes on with.

    Attributes:
        machine: what it ran on.
        memory: the file of its memory; the guest's own changes do not get there. Its content may
            come while the guest runs: a read of it waits.
        device_state: returns what QEMU wrote of its devices, once that is here.
        ready: returns once the guest may run; its machine is there before.
        gone_on: set once the guest runs.
        plugged: set once its network cards are plugged in again, a moment later.
    """

    machine: MachineState
    memory: Path
    device_state: Callable[[], Awaitable[bytes]]
    ready: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    gone_on: trio.Event = field(default_factory=trio.Event)
    plugged: trio.Event = field(default_factory=trio.Event)
