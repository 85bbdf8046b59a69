"""What a torrent's metadata says (BEP 3), checked whole before anything of it is used.

Plain data in, plain data out: bencode from outside is decoded by libtorrent, in the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.store.have import MAX_PIECES
from p2pcloop.units import MAX_IMAGE_SIZE
from p2pcloop.words import tr

MIN_PIECE_LENGTH = 1 << 14
"""BitTorrent's own unit of request: smaller pieces would gain nothing."""

MAX_PIECE_LENGTH = 1 << 24
"""The most that a read of one byte may have to fetch and keep in memory."""

MAX_METADATA_SIZE = 8 << 20
MAX_FILES = 64
MAX_NAME = 200
"""Bytes of a file's name. libtorrent cuts them to 240 bytes (findings/libtorrent-long-names.sh)."""

HASH_SIZE = 20

_SMALL_CONTENT = 128 << 20
_USUAL_PIECES = 8192


def piece_length_for(size: int) -> int:
    """Choose the piece length of a torrent over `size` bytes of content.

    A read fetches whole pieces, so small ones waste least: on a boot from an 83 MB cloop, pieces
    of 16, 32, 64 and 256 KiB fetched 1.12, 1.24, 1.43 and 2.31 times the compressed chunks that
    were touched. But metadata costs 20 bytes a piece and comes before the first read: 8192 pieces
    are 160 KiB. So 16 KiB up to 128 MiB, then the power of two that keeps to 8192 pieces.
    """
    length = MIN_PIECE_LENGTH
    while size > max(_SMALL_CONTENT, length * _USUAL_PIECES) and length < MAX_PIECE_LENGTH:
        length *= 2
    return length


@dataclass(frozen=True, slots=True)
class TorrentLayout:
    """How the content of a torrent is made of files, end to end, and cut into pieces.

    Attributes:
        name: the root directory's name, or the only file's.
        files: (path below `data/`, bytes) in order; the path starts with `name`.
        piece_length: bytes of every piece but the last.
        total_size: bytes of all files.
    """

    name: str
    files: tuple[tuple[PurePosixPath, int], ...]
    piece_length: int
    total_size: int

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return -(-self.total_size // self.piece_length)

    def piece_size(self, piece: int) -> int:
        """Bytes of a piece: the last one may be shorter."""
        return min(self.piece_length, self.total_size - piece * self.piece_length)

    def range_of(self, piece: int) -> tuple[int, int]:
        """Offset and length of a piece's bytes."""
        return piece * self.piece_length, self.piece_size(piece)

    def spans_of(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The pieces that a range touches, each with the offset and length of its part of it."""
        for piece in self.pieces_of(offset, length):
            start, size = self.range_of(piece)
            first = max(offset, start)
            yield piece, first, min(offset + length, start + size) - first

    def pieces_of(self, offset: int, length: int) -> range:
        """The pieces that the bytes `offset` to `offset + length` touch; `length` is positive."""
        return range(offset // self.piece_length, (offset + length - 1) // self.piece_length + 1)


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A torrent's info dictionary: where bytes lie and what they hash to.

    Attributes:
        layout: files and pieces.
        hashes: SHA-1 of each piece, 20 bytes a piece, end to end.
    """

    layout: TorrentLayout
    hashes: bytes

    def matches(self, piece: int, data: bytes | memoryview) -> bool:
        """Whether `data` is the right content of a piece."""
        expected = self.hashes[piece * HASH_SIZE : (piece + 1) * HASH_SIZE]
        return hashlib.sha1(data, usedforsecurity=False).digest() == expected


def info_dictionary(layout: TorrentLayout, hashes: bytes) -> dict[bytes, object]:
    """Make the info dictionary of BEP 3: the same content always gives the same one."""
    info: dict[bytes, object] = {
        b"name": layout.name.encode(),
        b"piece length": layout.piece_length,
        b"pieces": hashes,
    }
    if layout.files[0][0] == PurePosixPath(layout.name):
        info[b"length"] = layout.total_size
    else:
        info[b"files"] = [
            {b"length": size, b"path": [part.encode() for part in path.parts[1:]]}
            for path, size in layout.files
        ]
    return info


def bencode(value: object) -> bytes:
    """Encode as BEP 3 has it, keys sorted: bytes, integers, lists and dictionaries."""
    match value:
        case bytes():
            return b"%d:%s" % (len(value), value)
        case int():
            return b"i%de" % value
        case list():
            return b"l%se" % b"".join(map(bencode, value))
        case dict():
            return b"d%se" % b"".join(bencode(k) + bencode(v) for k, v in sorted(value.items()))
        case _:
            raise TypeError(f"bencode knows no {type(value).__name__}")


def parse_info(info: object) -> Metainfo:
    """Check a decoded info dictionary from outside.

    Limits: 64 files, names of 200 bytes, 262144 pieces of 16 KiB to 16 MiB (a power of two),
    16 TiB. Of BEP 47 nothing is taken: no padding files, no symbolic links. Names in a second
    spelling (`name.utf-8`, `path.utf-8`) are refused: libtorrent would save under those.

    Raises:
        FormatError: it is not one, or is outside the limits.
    """
    if not isinstance(info, dict):
        raise FormatError("the torrent's info is not a dictionary")
    name = _name(info.get(b"name"))
    if b"name.utf-8" in info:
        raise FormatError(tr("torrent {name}: it has a second name", name=name))
    files = _files(name, info)
    piece_length, hashes = info.get(b"piece length"), info.get(b"pieces")
    total = sum(size for _, size in files)
    if not isinstance(piece_length, int) or piece_length & (piece_length - 1):
        raise FormatError(tr("torrent {name}: the piece length is not a power of two", name=name))
    if not MIN_PIECE_LENGTH <= piece_length <= MAX_PIECE_LENGTH:
        raise FormatError(
            tr(
                "torrent {name}: pieces of {piece_length} bytes are not supported",
                name=name,
                piece_length=piece_length,
            )
        )
    if not 0 < total <= MAX_IMAGE_SIZE:
        raise FormatError(
            tr("torrent {name}: {total} bytes of content are not supported", name=name, total=total)
        )
    layout = TorrentLayout(name, files, piece_length, total)
    if layout.pieces > MAX_PIECES:
        raise FormatError(
            tr(
                "torrent {name}: {pieces} pieces are more than {max_pieces}",
                name=name,
                pieces=layout.pieces,
                max_pieces=MAX_PIECES,
            )
        )
    if not isinstance(hashes, bytes) or len(hashes) != layout.pieces * HASH_SIZE:
        raise FormatError(tr("torrent {name}: there is not one hash for each piece", name=name))
    return Metainfo(layout, hashes)


def _files(name: str, info: dict[object, object]) -> tuple[tuple[PurePosixPath, int], ...]:
    if b"meta version" in info or b"file tree" in info:
        raise FormatError(tr("torrent {name}: v2 and hybrid torrents are not supported", name=name))
    if b"files" not in info:
        return ((PurePosixPath(name), _length(info)),)
    entries = info[b"files"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_FILES:
        raise FormatError(
            tr(
                "torrent {name}: it must have 1 to {max_files} files",
                name=name,
                max_files=MAX_FILES,
            )
        )
    files = tuple(_file(name, entry) for entry in entries)
    taken = {PurePosixPath(str(path).casefold()) for path, _ in files}
    if len(taken) != len(files) or any(taken.intersection(path.parents) for path in taken):
        raise FormatError(tr("torrent {name}: two files have one name", name=name))
    return files


def _file(name: str, entry: object) -> tuple[PurePosixPath, int]:
    if not isinstance(entry, dict):
        raise FormatError(tr("torrent {name}: a file is not a dictionary", name=name))
    parts = entry.get(b"path")
    if b"path.utf-8" in entry:
        raise FormatError(tr("torrent {name}: a file has a second path", name=name))
    if not isinstance(parts, list) or not 1 <= len(parts) <= 8:
        raise FormatError(
            tr("torrent {name}: a file's path is not a list of 1 to 8 names", name=name)
        )
    return PurePosixPath(name, *(_name(part) for part in parts)), _length(entry)


def _length(entry: dict[object, object]) -> int:
    length = entry.get(b"length")
    if b"attr" in entry or not isinstance(length, int) or not 0 <= length <= MAX_IMAGE_SIZE:
        raise FormatError("a file of the torrent is special or has no proper length")
    return length


def _name(raw: object) -> str:
    """Check one component of a path: nothing outside ever names another local path."""
    if not isinstance(raw, bytes) or not 1 <= len(raw) <= MAX_NAME:
        raise FormatError(
            tr("a file name in the torrent is not 1 to {max_name} bytes", max_name=MAX_NAME)
        )
    try:
        name = raw.decode()
    except UnicodeDecodeError as err:
        raise FormatError(tr("a file name in the torrent is not UTF-8: {err}", err=err)) from err
    if name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise FormatError(
            tr("a file of the torrent has the name {name!r}, which is not accepted", name=name)
        )
    return name
