"""The packets of User-Mode Linux's management console, without a socket.

Source: the kernel's arch/um/drivers/mconsole.h. A request is one datagram (magic, version, length,
text); the answer is one or more datagrams (error, more follows, length, text), each number 32 bits
in the byte order of the machine, as UML and its console always share one.
"""

from __future__ import annotations

import struct

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAGIC = 0xCAFEBABE
VERSION = 2
MAX_DATA = 512

_HEADER = struct.Struct("=III")
MAX_PACKET = _HEADER.size + MAX_DATA


@dataclass(frozen=True, slots=True)
class Reply:
    """One datagram of an answer.

    Attributes:
        failed: the command was refused; `text` says why.
        more: another datagram follows.
    """

    failed: bool
    more: bool
    text: str


def encode_request(command: str) -> bytes:
    """Return the datagram for a command such as `version`, `cad` or `halt`.

    Raises:
        ValueError: the command has more than 511 bytes: the kernel keeps one for a NUL.
    """
    data = command.encode()
    if len(data) >= MAX_DATA:
        raise ValueError(f"a command of {len(data)} bytes: the limit is {MAX_DATA - 1}")
    return _HEADER.pack(MAGIC, VERSION, len(data)) + data


def decode_reply(packet: bytes) -> Reply:
    """Parse a datagram of an answer.

    Raises:
        FormatError: it is shorter than its header says, or larger than an answer may be.
    """
    if not _HEADER.size <= len(packet) <= MAX_PACKET:
        raise FormatError(
            tr("a management console's answer of {packet_count} bytes", packet_count=len(packet))
        )
    error, more, length = _HEADER.unpack_from(packet)
    data = packet[_HEADER.size :]
    if length > len(data):
        raise FormatError(
            tr(
                "a management console's answer says {length} bytes of text but has {data_count}",
                length=length,
                data_count=len(data),
            )
        )
    text = data[:length].rstrip(b"\0").decode(errors="replace")
    return Reply(failed=error != 0, more=more != 0, text=text)
