"""Mirrors: one layout of files, in a directory, under a URL, and served by a node.

    @<key>/<label>                a signed record
    manifests/<id hex>            a signed manifest
    torrents/<info hash hex>.torrent
    data/<torrent name>/index|pack

A node answers one more, which is no file: `dispatch/<info hash hex>/<pieces>`, a piece of these
that it gave to no client just now, so clients that want all of them get different ones.

The torrent of a layer has its name from the layer's id (`layer_torrent_name`), so that `data/` has
the layout of a web seed (BEP 19). docs/formats/mirror.md has the rest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from p2pcloop.errors import FormatError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.name import Name, parse_name
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

INDEX, PACK = "index", "pack"
"""The two files of a layer, in the order of its torrent."""

MAX_CANDIDATES = 64
"""Pieces that a dispatcher may choose from."""

MAX_METAINFO_SIZE = (8 << 20) + (64 << 10)
"""Bytes of a .torrent file: an info dictionary of at most 8 MiB, and web seeds."""

_TORRENT_NAME_LENGTH = 32
_MAX_PATH = 1024
_MANIFEST = re.compile(r"manifests/([0-9a-f]{64})")
_METAINFO = re.compile(r"torrents/([0-9a-f]{40})\.torrent")
_LAYER_FILE = re.compile(rf"data/([0-9a-f]{{{_TORRENT_NAME_LENGTH}}})/({INDEX}|{PACK})")
_DISPATCH = re.compile(r"dispatch/([0-9a-f]{40})/([0-9,-]+)")
_RUN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_INFO = b"d4:info"
_URL_LIST = b"8:url-list"


@dataclass(frozen=True, slots=True)
class RecordPath:
    """A signed record."""

    name: Name

    def __str__(self) -> str:
        return str(self.name)


@dataclass(frozen=True, slots=True)
class ManifestPath:
    """A signed manifest, by its id (SHA-256, 32 bytes)."""

    id: bytes

    def __str__(self) -> str:
        return f"manifests/{self.id.hex()}"


@dataclass(frozen=True, slots=True)
class MetainfoPath:
    """A .torrent file (BEP 3), by its info hash (20 bytes)."""

    torrent: bytes

    def __str__(self) -> str:
        return f"torrents/{self.torrent.hex()}.torrent"


@dataclass(frozen=True, slots=True)
class LayerFilePath:
    """A file of a layer: the torrent's name, and `index` or `pack`."""

    torrent_name: str
    file: str

    def __str__(self) -> str:
        return f"data/{self.torrent_name}/{self.file}"


@dataclass(frozen=True, slots=True)
class DispatchPath:
    """A piece of a torrent, the first of these that no client was given just now.

    The answer is the piece's number (4 bytes, big-endian) and the piece; it is empty if all pieces
    were given to other clients.

    Attributes:
        torrent: its info hash, 20 bytes.
        pieces: 1 to `MAX_CANDIDATES`, the most wanted one first.
    """

    torrent: bytes
    pieces: tuple[int, ...]

    def __str__(self) -> str:
        return f"dispatch/{self.torrent.hex()}/{_format_runs(self.pieces)}"


MirrorPath = RecordPath | ManifestPath | MetainfoPath | LayerFilePath | DispatchPath


def parse_path(text: str) -> MirrorPath | None:
    """Read a path below a mirror's base; None if it is not exactly one of the five kinds."""
    if len(text) > _MAX_PATH:
        return None
    if found := _MANIFEST.fullmatch(text):
        return ManifestPath(bytes.fromhex(found[1]))
    if found := _METAINFO.fullmatch(text):
        return MetainfoPath(bytes.fromhex(found[1]))
    if found := _LAYER_FILE.fullmatch(text):
        return LayerFilePath(found[1], found[2])
    if found := _DISPATCH.fullmatch(text):
        path = DispatchPath(bytes.fromhex(found[1]), _parse_runs(found[2]))
        return path if str(path) == text else None
    try:
        return RecordPath(parse_name(text))
    except FormatError:
        return None


def _format_runs(numbers: tuple[int, ...]) -> str:
    """Numbers as runs of consecutive ones: `3-5,9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)


def _parse_runs(text: str) -> tuple[int, ...]:
    """Read the text of `_format_runs`; empty if it is malformed, or has too many numbers."""
    numbers: list[int] = []
    for run in text.split(","):
        found = _RUN.fullmatch(run)
        if found is None:
            return ()
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + MAX_CANDIDATES - len(numbers):
            return ()
        numbers += range(first, last + 1)
    return tuple(numbers)


def layer_torrent_name(layer_id: bytes) -> str:
    """The name of a layer's torrent: the first half of the layer's id."""
    return layer_id.hex()[:_TORRENT_NAME_LENGTH]


def layer_parts(
    layer: LayerRef, offset: int, length: int
) -> Iterable[tuple[LayerFilePath, int, int]]:
    """The files of a run of bytes of a layer's torrent: (file, offset in it, length), in order."""
    name = layer_torrent_name(layer.layer_id)
    start = 0
    for file, size in ((INDEX, layer.index_length), (PACK, layer.pack_length)):
        first, last = max(offset, start), min(offset + length, start + size)
        if first < last:
            yield LayerFilePath(name, file), first - start, last - first
        start += size


def build_metainfo(info: bytes, web_seeds: Iterable[str] = ()) -> bytes:
    """Make a .torrent file of a bencoded info dictionary and any web seeds (BEP 19)."""
    urls = b"".join(b"%d:%s" % (len(url), url) for url in map(str.encode, web_seeds))
    return _INFO + info + (_URL_LIST + b"l" + urls + b"e" if urls else b"") + b"e"


def extract_info(data: bytes, info_hash: bytes) -> bytes:
    """Take the bencoded info dictionary out of a .torrent file that `build_metainfo` made.

    Raises:
        FormatError: the file is no such file, or another torrent's.
    """
    end = data.rfind(_URL_LIST)
    for info in (data[len(_INFO) : -1], data[len(_INFO) : end]):
        if hashlib.sha1(info, usedforsecurity=False).digest() == info_hash:
            return info
    raise FormatError(
        tr("it is not the metadata of torrent {info_hash}", info_hash=info_hash.hex())
    )
