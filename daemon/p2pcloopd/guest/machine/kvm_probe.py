"""Runs a loop in kernel mode of a KVM guest, and ends with 0 if it came to its end.

It is a program of its own, and imports nothing of p2pcloop: where KVM hangs, it is killed. Usage:
kvm_probe.py DEVICE. Of the kernel's interface (Documentation/virt/kvm/api.rst; linux/kvm.h) it uses
what every KVM has: a guest in protected mode without paging, as a PC's boot loader is.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys

_GET_API_VERSION, _CREATE_VM, _GET_RUN_SIZE = 0xAE00, 0xAE01, 0xAE04
_CREATE_VCPU, _SET_MEMORY, _RUN = 0xAE41, 0x4020AE46, 0xAE80
_SET_TSS = 0xAE47
_SET_REGISTERS, _GET_SPECIAL, _SET_SPECIAL = 0x4090AE82, 0x8138AE83, 0x4138AE84
_API_VERSION = 12
_EXIT_IO = 2
_EXIT_REASON_AT = 8

_PAGE = 4096
_MEMORY = 16 * _PAGE
_CODE_AT = 0x1000
_TSS_AT = 0x0FFB0000  # three pages that Intel's processors want, outside of the memory
_PORT = 0xF4
_LOOPS = 20_000_000

_CODE = (
    b"\xb9" + struct.pack("<I", _LOOPS)  # mov ecx, LOOPS
    + b"\x49\x75\xfd"  # dec ecx; jnz back to it
    + bytes([0xE6, _PORT])  # out PORT, al
    + b"\xf4"  # hlt
)  # fmt: skip

# struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl
_SEGMENT = struct.Struct("<QIHBBBBBBBBBB")
_SEGMENTS = 8  # cs, ds, es, fs, gs, ss, tr, ldt
_CR0_AT = _SEGMENT.size * _SEGMENTS + 2 * 16
_PROTECTED = 0x1

_RIP, _FLAGS = 16, 17


def main(device: str) -> int:
    """Run the guest; return the exit code."""
    try:
        reason = run_guest(device)
    except OSError as err:
        print(f"{device} cannot be used: {err.strerror}")
        return 1
    if reason != _EXIT_IO:
        print(f"{device} is there, but does not run a guest (exit reason {reason})")
        return 1
    return 0


def run_guest(device: str) -> int:
    """Run the loop; return why the virtual processor stopped.

    Raises:
        OSError: KVM refuses something.
    """
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(kvm, _GET_API_VERSION, 0) != _API_VERSION:
        return -1
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    fcntl.ioctl(machine, _SET_TSS, _TSS_AT)
    memory = mmap.mmap(-1, _MEMORY)
    memory[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, _SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY, address))
    processor = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    shared = mmap.mmap(processor, fcntl.ioctl(kvm, _GET_RUN_SIZE, 0))
    fcntl.ioctl(processor, _SET_SPECIAL, _flat(fcntl.ioctl(processor, _GET_SPECIAL, bytes(312))))
    registers = [0] * 18
    registers[_RIP], registers[_FLAGS] = _CODE_AT, 2
    fcntl.ioctl(processor, _SET_REGISTERS, struct.pack("<18Q", *registers))
    while True:
        try:
            fcntl.ioctl(processor, _RUN, 0)
        except InterruptedError:
            continue
        (reason,) = struct.unpack_from("<I", shared, _EXIT_REASON_AT)
        return int(reason)


def _flat(special: bytes) -> bytes:
    """struct kvm_sregs in protected mode, with segments of 4 GiB."""
    changed = bytearray(special)
    for number in range(6):
        kind = 11 if number == 0 else 3
        segment = _SEGMENT.pack(
            0, 0xFFFFFFFF, 8 * (1 + (number > 0)), kind, 1, 0, 1, 1, 0, 1, 0, 0, 0
        )
        changed[number * _SEGMENT.size : (number + 1) * _SEGMENT.size] = segment
    (control,) = struct.unpack_from("<Q", changed, _CR0_AT)
    struct.pack_into("<Q", changed, _CR0_AT, control | _PROTECTED)
    return bytes(changed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
