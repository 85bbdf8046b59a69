"""What a guest may put on its wire, decided by a socket filter in the host's kernel.

libslirp's `--disable-host-loopback` closes only the host's alias (10.0.2.2): a guest that sends to
127.0.0.1 or 0.0.0.0 itself, or to any port of the name server's alias where the host's resolver is
on its loopback, still reaches the host's local services. A classic BPF program on the helper's
socket drops such frames before the helper sees them, at no cost in throughput.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from ipaddress import IPv4Address

_SO_ATTACH_FILTER = 26
_SO_LOCK_FILTER = 44

# Instruction codes: linux/bpf_common.h. Offsets: Ethernet header (14), then IPv4 (RFC 791).
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_HALF_INDEXED, _LOAD_X_HEADER_LENGTH = 0x48, 0xB1
_SHIFT_RIGHT, _EQUAL, _ANY_BIT, _RETURN = 0x74, 0x15, 0x45, 0x06
_ARP, _IPV4, _TCP, _UDP, _DNS = 0x0806, 0x0800, 6, 17, 53


def install(helper_end: socket.socket, nameserver: str) -> None:
    """Let `helper_end` receive only ARP, and IPv4 that neither goes to this host's own (0.0.0.0/8,
    127.0.0.0/8) nor to anything but DNS at `nameserver`; the filter cannot be taken off again."""
    accept, drop = 16, 17
    # code, operand, where to go on if true and if false (None: not a jump)
    program: list[tuple[int, int, int | None, int | None]] = [
        (_LOAD_HALF, 12, None, None),
        (_EQUAL, _ARP, accept, 2),
        (_EQUAL, _IPV4, 3, drop),
        (_LOAD_WORD, 30, None, None),
        (_EQUAL, int(IPv4Address(nameserver)), 8, 5),
        (_SHIFT_RIGHT, 24, None, None),
        (_EQUAL, 127, drop, 7),
        (_EQUAL, 0, drop, accept),
        # To the name server: no fragments, as only the first tells the port.
        (_LOAD_HALF, 20, None, None),
        (_ANY_BIT, 0x3FFF, drop, 10),
        (_LOAD_BYTE, 23, None, None),
        (_EQUAL, _TCP, 13, 12),
        (_EQUAL, _UDP, 13, drop),
        (_LOAD_X_HEADER_LENGTH, 14, None, None),
        (_LOAD_HALF_INDEXED, 14 + 2, None, None),
        (_EQUAL, _DNS, accept, drop),
        (_RETURN, 0xFFFFFFFF, None, None),
        (_RETURN, 0, None, None),
    ]
    code = b"".join(
        struct.pack(
            "=HBBI",
            operation,
            0 if true is None else true - here - 1,
            0 if false is None else false - here - 1,
            operand,
        )
        for here, (operation, operand, true, false) in enumerate(program)
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program_header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    helper_end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program_header)
    helper_end.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
