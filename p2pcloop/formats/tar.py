"""Reads tar files of strangers as they arrive: those that busybox and GNU tar write (tar(5)).

Old and "ustar" headers, and GNU's long names. What a name leads to is not judged here. Nothing but
a header or a name is held, so memory is bounded whatever sizes are announced. pax headers, sparse
files and other types are refused: busybox writes none.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

_BLOCK = 512
_MAX_NAME = 1 << 12
"""PATH_MAX of Linux: no path that is longer can be read in a guest."""

_MAX_SIZE = 1 << 62
_LONG_NAME, _LONG_LINK = b"L", b"K"
_CHECKSUM = slice(148, 156)


class Kind(enum.Enum):
    """What a member is."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHARACTER_DEVICE = b"3"
    BLOCK_DEVICE = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(frozen=True, slots=True)
class Member:
    """What a header tells.

    Attributes:
        name: as it is written there, which may be anything but a null byte.
        kind: what it is.
        mode: permissions and set-id bits.
        modified: seconds of Unix time.
        size: bytes of a file; of all others 0.
        link: where a link leads, as it is written there.
    """

    name: bytes
    kind: Kind
    mode: int
    modified: int
    size: int
    link: bytes


class TarReader:
    """Turns a stream of bytes, cut anywhere, into members and their content.

    Attributes:
        ended: whether the end of the archive has come; what follows it is dropped.
    """

    def __init__(self) -> None:
        self.ended = False
        self._held = bytearray()
        self._content = 0
        self._skipped = 0
        self._name_type = b""
        self._name_size = 0
        self._long: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> Iterator[Member | bytes]:
        """Take the next bytes; yield each member when its header has come, and then its content.

        Raises:
            FormatError: they are not such a file.
        """
        self._hold(data)
        while not self.ended:
            if self._content:
                if not self._held:
                    return
                piece = bytes(self._held[: self._content])
                del self._held[: len(piece)]
                self._content -= len(piece)
                yield piece
            elif self._skipped:
                if not self._held:
                    return
                skipped = min(self._skipped, len(self._held))
                del self._held[:skipped]
                self._skipped -= skipped
            elif self._name_type:
                if len(self._held) < self._name_size:
                    return
                name = bytes(self._held[: self._name_size])
                del self._held[: self._name_size]
                self._long[self._name_type] = name.partition(b"\0")[0]
                self._name_type = b""
            else:
                if len(self._held) < _BLOCK:
                    return
                block = bytes(self._held[:_BLOCK])
                del self._held[:_BLOCK]
                member = self._read_header(block)
                if member is not None:
                    yield member

    def _hold(self, data: bytes) -> None:
        if not self.ended:
            self._held += data

    def _read_header(self, block: bytes) -> Member | None:
        if not any(block):
            self.ended = True
            return None
        blank = block[:148] + b" " * 8 + block[156:]
        if _number(block[_CHECKSUM]) != sum(blank):
            raise FormatError("a tar file is damaged: the checksum of a header is wrong")
        size, kind = _number(block[124:136]), block[156:157].replace(b"\0", b"0")
        padding = -size % _BLOCK
        if kind in (_LONG_NAME, _LONG_LINK):
            if not 0 < size <= _MAX_NAME:
                raise FormatError(tr("a name in a tar file is {size} bytes long", size=size))
            self._name_type, self._name_size, self._skipped = kind, size, 0
            self._name_size += padding
            return None
        try:
            known = Kind(b"0" if kind == b"7" else kind)
        except ValueError:
            raise FormatError(tr("a tar file has a member of type {kind!r}", kind=kind)) from None
        if known is Kind.FILE:
            self._content, self._skipped = size, padding
        name = block[:100].partition(b"\0")[0]
        if block[257:263] == b"ustar\0" and block[345]:
            name = block[345:500].partition(b"\0")[0] + b"/" + name
        link = block[157:257].partition(b"\0")[0]
        long, self._long = self._long, {}
        return Member(
            long.get(_LONG_NAME, name),
            known,
            _number(block[100:108]) & 0o7777,
            _number(block[136:148]),
            self._content,
            long.get(_LONG_LINK, link),
        )


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's form for large numbers
        value = int.from_bytes(field[1:])
    elif field[0] == 0xFF:  # a negative one: a time before 1970
        value = 0
    else:
        digits = field.strip(b"\0 ")
        if digits and not all(digit in b"01234567" for digit in digits):
            raise FormatError("a tar file is damaged: a number in a header is none")
        value = int(digits or b"0", 8)
    if value > _MAX_SIZE:
        raise FormatError(tr("a number in a tar file is too large: {what}", what=value))
    return value
