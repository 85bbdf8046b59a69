"""The images of a home: every version that is known, how much of it is here, whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from p2pcloop.errors import (
    FormatError,
    MismatchError,
    NotHereError,
    StorageError,
    storage_error,
)
from p2pcloop.formats.manifest import LayerRef, SignedManifest
from p2pcloop.frozen import dataclass
from p2pcloop.store.have import HaveView
from p2pcloop.store.home import Home
from p2pcloop.store.in_place import hold_served
from p2pcloop.store.keys import our_keys
from p2pcloop.store.overlays import overlaid_manifests
from p2pcloop.store.pins import load_pins
from p2pcloop.store.provisional_log import kept_ranges
from p2pcloop.store.records import Records
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version of an image that is known here.

    Attributes:
        signed: its manifest.
        newest: it is the newest known of its name.
        ours: a key of this home signed it.
        here: bytes of its layers and sources that are here, in whatever form.
        verified: of these, those in whole pieces: the others serve readers of this node alone.
        stored: bytes of all of them.
        in_place: files that are served where they lie, outside of the home.
        unserved: why some of those are not served now: gone, or changed.
        overlays: overlays that lie on it, by their absolute paths.
        pinned: it is never evicted.
    """

    signed: SignedManifest
    newest: bool
    ours: bool
    here: int
    verified: int
    stored: int
    in_place: tuple[Path, ...]
    unserved: tuple[str, ...]
    overlays: tuple[Path, ...]
    pinned: bool


def list_versions(home: Home) -> Iterator[StoredVersion]:
    """Every version that is known here, by name, the newest of each first.

    p2pcloopd need not run.

    Raises:
        FormatError, UsageError: pins, keys or names cannot be read.
        StorageError: the system refused.
    """
    records = Records(home)
    pins, ours = load_pins(home), our_keys(home.keys)
    overlays: dict[bytes, list[Path]] = {}
    for path, ids in overlaid_manifests(home):
        for manifest_id in ids:
            overlays.setdefault(manifest_id, []).append(path)
    for record in records.names():
        for version, ref in sorted(record.versions.items(), reverse=True):
            try:
                signed = records.manifest(ref.id)
            except (NotHereError, FormatError, MismatchError):
                continue  # a history names it by number, and its manifest is not here
            layers = signed.manifest.all_layers
            unserved = {layer: tuple(_unserved(home, layer)) for layer in layers}
            here = [_here(home, layer) for layer in layers if not unserved[layer]]
            yield StoredVersion(
                signed,
                newest=version == record.version,
                ours=record.name.key in ours,
                here=sum(map(sum, here)),
                verified=sum(verified for verified, _ in here),
                stored=sum(map(_size, layers)),
                in_place=tuple(path.readlink() for layer in layers for path in _links(home, layer)),
                unserved=tuple(why for layer in layers for why in unserved[layer]),
                overlays=tuple(overlays.get(signed.id, ())),
                pinned=signed.id in pins,
            )


def _size(layer: LayerRef) -> int:
    return layer.index_length + layer.pack_length


def _here(home: Home, layer: LayerRef) -> tuple[int, int]:
    """Bytes of a layer in pieces that its have file tells of, and those that are provisional."""
    directory, length = home.torrents / layer.torrent.hex(), layer.piece_length
    whole: set[int] = set()
    with suppress(NotHereError, FormatError), HaveView(directory / "have") as have:
        whole = {piece for piece, here in enumerate(have.each()) if here}

    def size(piece: int, first: int = 0, end: int = _size(layer)) -> int:
        return max(0, min(end, (piece + 1) * length) - max(first, piece * length))

    provisional = sum(
        size(piece, offset, offset + count)
        for offset, count in kept_ranges(directory)
        for piece in range(offset // length, (offset + count - 1) // length + 1)
        if piece not in whole
    )
    return sum(map(size, whole)), provisional


def _links(home: Home, layer: LayerRef) -> Iterator[Path]:
    data = home.torrents / layer.torrent.hex() / "data"
    try:
        for path in data.rglob("*"):
            if path.is_symlink():
                yield path
    except OSError as err:
        raise storage_error(tr("cannot read {data}", data=data), err) from err


def _unserved(home: Home, layer: LayerRef) -> Iterator[str]:
    """Why files that lie elsewhere are not served, as p2pcloopd finds it, too."""
    directory = home.torrents / layer.torrent.hex()
    for path in _links(home, layer):
        try:
            hold_served(directory, str(path.relative_to(directory / "data")))
        except (MismatchError, StorageError) as err:
            yield err.message
