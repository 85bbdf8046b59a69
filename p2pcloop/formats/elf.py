"""The program headers of ELF files for processors of 64 bits (System V ABI, "Program Header")."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from p2pcloop.frozen import dataclass

PT_LOAD, PT_NOTE = 1, 4

_ELF = struct.Struct("<16sHHIQQQIHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ELF64 = b"\x7fELF\x02\x01\x01"
_X86_64 = 62


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header.

    Attributes:
        kind: `PT_LOAD`, ...
        offset, length: its bytes in the file.
        address: the physical one that they are loaded to.
    """

    kind: int
    offset: int
    length: int
    address: int


def segments(program: bytes) -> Iterator[Segment]:
    """The program headers of an ELF file for x86-64; none of any other file.

    Args:
        program: the file, or its first part with the headers.

    Raises:
        struct.error: the file is cut off.
    """
    if program[: len(_ELF64)] != _ELF64:
        return
    _, _, machine, _, _, headers, _, _, _, size, count = _ELF.unpack_from(program)
    if machine != _X86_64 or size != _PROGRAM_HEADER.size:
        return
    for number in range(count):
        kind, _, offset, _, address, length, _, _ = _PROGRAM_HEADER.unpack_from(
            program, headers + number * size
        )
        yield Segment(kind, offset, length, address)
