"""Small ELF files."""

from __future__ import annotations

import struct


def elf(*segments: tuple[int, int, bytes], machine: int = 62) -> bytes:
    """A program.

    Args:
        segments: of each its kind, the physical address that it is loaded to, and its bytes.
        machine: what it is for; 62 for x86-64.
    """
    head = struct.pack(
        "<16sHHIQQQIHHH",
        *(b"\x7fELF\x02\x01\x01", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments)),
    )
    headers, data = b"", b""
    begin = 64 + 56 * len(segments)
    for kind, address, content in segments:
        length = len(content)
        headers += struct.pack(
            "<IIQQQQQQ", kind, 4, begin + len(data), 0, address, length, length, 4
        )
        data += content
    return head.ljust(64, b"\0") + headers + data
