"""The header of an overlay file, and the places of its parts (docs/formats/overlay.md)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

MAGIC = b"P2PCOVL\n"
VERSION = 1
HEADER_SIZE = 4096
PAGE_SIZE = 4096
"""Bytes of the state table, one for each block, that are written back together."""
MAX_NAME_SIZE = 256
ID_SIZE = 32
MAX_CREATED = 253_402_300_799
"""The last second of the year 9999: dates have four digits for the year."""

_FIELDS = struct.Struct("<8sIIQQ32s32sI256s")
_CRC = struct.Struct("<I")
_NO_ID = bytes(ID_SIZE)
_FILES = 1
"""The flag of an overlay that is a device of its own. Programs without flags refuse it."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an overlay, checked.

    Attributes:
        image_size: bytes of the device, a multiple of 4096.
        image_id: of the image below: SHA-256 of its size and its layers' ids.
        manifest_id: SHA-256 of the manifest that the image came with, or None.
        name: `@key/label` of the image or empty; for people only.
        created: seconds since 1970.
        files: the device is not the image's but a second one, of zeros at first, whose file system
            holds changed files (mode "files"); `image_size` is this device's.
    """

    image_size: int
    image_id: bytes
    manifest_id: bytes | None
    name: str
    created: int
    files: bool = False

    @property
    def mode(self) -> str:
        """Its name for `--overlay-mode`: "block" or "files"."""
        return "files" if self.files else "block"

    @property
    def block_count(self) -> int:
        """Blocks of the device, and bytes of the state table that are used."""
        return self.image_size // BLOCK_SIZE

    @property
    def data_offset(self) -> int:
        """The offset of block 0 in the file: after header and state table, each in whole pages."""
        return HEADER_SIZE + -(-self.block_count // PAGE_SIZE) * PAGE_SIZE

    @property
    def file_size(self) -> int:
        """Bytes of the (sparse) file: every block has its place from the start."""
        return self.data_offset + self.image_size

    def _other_mode(self, path: Path, mode: str) -> str:
        if self.files:
            return tr(
                "{path} is an overlay of mode files: it holds a file system of changed files;"
                " mode {mode} is needed here",
                path=path,
                mode=mode,
            )
        return tr(
            "{path} is an overlay of mode block: it holds changed blocks of the image; mode"
            " {mode} is needed here",
            path=path,
            mode=mode,
        )

    def pack(self) -> bytes:
        """Return the 4096 bytes of the header.

        Raises:
            ValueError: a field is out of its limits, a mistake of the caller.
        """
        if (problem := self._problem()) is not None:
            raise ValueError(tr("an overlay cannot be made: {problem}", problem=problem))
        head = _FIELDS.pack(
            MAGIC,
            VERSION,
            _FILES if self.files else 0,
            self.image_size,
            self.created,
            self.image_id,
            self.manifest_id or _NO_ID,
            BLOCK_SIZE,
            self.name.encode(),
        ).ljust(HEADER_SIZE - _CRC.size, b"\0")
        return head + _CRC.pack(zlib.crc32(head))

    @classmethod
    def unpack(cls, raw: bytes) -> Header:
        """Check the first 4096 bytes of a file whole and return the header.

        Raises:
            FormatError: this is no overlay, one of another version, or a damaged one.
        """
        if len(raw) < HEADER_SIZE or not raw.startswith(MAGIC):
            raise FormatError("it does not begin with an overlay's header")
        (_, version, flags, image_size, created, image_id, manifest_id, block_size, name) = (
            _FIELDS.unpack_from(raw)
        )
        if version != VERSION:
            told = tr(
                "it has version {version} of the format, this program knows version {known}",
                version=version,
                known=VERSION,
            )
            raise FormatError(told, hint="use the p2pcloop that made it, or a newer one")
        body, reserved = raw[: -_CRC.size], raw[_FIELDS.size : -_CRC.size]
        if _CRC.unpack(raw[-_CRC.size :]) != (zlib.crc32(body),):
            raise FormatError("the checksum of its header is wrong: the header is damaged")
        if flags & ~_FILES or any(reserved) or block_size != BLOCK_SIZE:
            raise FormatError(
                tr(
                    "flags {flags:#x}, blocks of {block_size} bytes: not known here",
                    flags=flags,
                    block_size=block_size,
                )
            )
        try:
            text = name.rstrip(b"\0").decode()
        except UnicodeDecodeError as err:
            raise FormatError("the name in its header is not UTF-8") from err
        header = cls(
            image_size,
            image_id,
            None if manifest_id == _NO_ID else manifest_id,
            text,
            created,
            bool(flags & _FILES),
        )
        if (problem := header._problem()) is not None:
            raise FormatError(problem)
        return header

    def check_match(self, path: Path, image_id: bytes | None, mode: str | None) -> None:
        """Refuse an overlay that is not of this image or mode; None takes any.

        Args:
            path: its file, for the message.
            image_id: of the image that it is to lie on.
            mode: "block" or "files".

        Raises:
            MismatchError: it is of another image or mode.
        """
        if mode not in (None, self.mode):
            raise MismatchError(
                self._other_mode(path, mode),
                hint=tr(
                    "`p2pcloop boot` takes it with --overlay-mode {mode} or without that option; or"
                    " give another file name to start anew",
                    mode=self.mode,
                ),
            )
        if image_id not in (None, self.image_id):
            name = f"{self.name}, " if self.name else ""
            raise MismatchError(
                tr(
                    "{path} was made on another image: {name}image id {image_id}; this one is"
                    " {image_id2}",
                    path=path,
                    name=name,
                    image_id=self.image_id.hex(),
                    image_id2=(image_id or b"").hex(),
                ),
                hint="use it with that one (an older version of a name: --at), or give another"
                " file name to start anew",
            )

    def _problem(self) -> str | None:
        """The name of a field that is out of its limits, or None."""
        if self.image_size % BLOCK_SIZE or not BLOCK_SIZE <= self.image_size <= MAX_IMAGE_SIZE:
            return tr(
                "an image of {image_size} bytes is not 1 to 2^32 blocks of {block_size}",
                image_size=self.image_size,
                block_size=BLOCK_SIZE,
            )
        if len(self.image_id) != ID_SIZE or self.manifest_id == _NO_ID:
            return tr("an id is not a SHA-256")
        if self.manifest_id is not None and len(self.manifest_id) != ID_SIZE:
            return tr("the manifest's id is not a SHA-256")
        if len(self.name.encode()) > MAX_NAME_SIZE or not self.name.isprintable():
            return tr(
                "the name is longer than {max_name_size} bytes or not printable",
                max_name_size=MAX_NAME_SIZE,
            )
        if not 0 <= self.created <= MAX_CREATED:
            return tr("the time {created} is not a date", created=self.created)
        return None
