"""The device of a state, joined of its parts (docs/formats/state.md)."""

from __future__ import annotations

import os
from functools import partial

from p2pcloop.errors import FormatError
from p2pcloop.formats.holes import next_data
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.making.changes import Target
from p2pcloop.making.targets import FileTarget, JoinedTarget


def memory_in_file(descriptor: int, length: int) -> FileTarget:
    """The memory of a guest in a file, all of it; what is in no hole is read.

    Args:
        descriptor: of a file that nobody changes: a copy, or the memory of a guest that has ended.
            It stays the caller's.
        length: its bytes.
    """
    return FileTarget(partial(_read, descriptor), length, partial(next_data, descriptor))


def state_target(
    disk: Target, memory: Target, device_state: bytes, machine: MachineState
) -> JoinedTarget:
    """Join the parts of a state.

    Args:
        disk, memory: their devices, which have the sizes that `machine` says.
        machine: of the state.

    Raises:
        FormatError: a part is of another size; or a field of `machine` is outside its limits.
    """
    machine.check()
    found = {
        "disk": (disk.size, machine.disk.size),
        "memory": (memory.size, machine.memory.size),
        "device state": (len(device_state), machine.device_state.length),
    }
    for what, (size, said) in found.items():
        if size != said:
            raise FormatError(f"the {what} of the guest has {size} bytes, and {said} were said")
    return JoinedTarget(
        (0, disk),
        (machine.memory.start, memory),
        (machine.device_state.start, _bytes_target(device_state)),
    )


def _bytes_target(data: bytes) -> FileTarget:
    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return FileTarget(read, len(data))


def _read(descriptor: int, offset: int, length: int) -> bytes:
    return os.pread(descriptor, length, offset)
