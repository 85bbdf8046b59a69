"""What a home knows of the torrents of an image, for its chunk map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from p2pcloop.errors import FormatError, NotHereError, P2pcloopError
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.picture.chunk_map import Held
from p2pcloop.store.have import HaveView
from p2pcloop.store.home import Home
from p2pcloop.store.intervals import Ranges
from p2pcloop.store.keys import our_keys
from p2pcloop.store.provisional_log import kept_ranges
from p2pcloop.store.usage import known_manifests, published_layers

Ask = Callable[[bytes], Mapping[str, Any] | None]
"""The answer of p2pcloopd to `pieces` of a torrent; None where it does not run, or knows none."""


def unknown(_torrent: bytes) -> None:
    """The `Ask` where no p2pcloopd runs."""


def look_at_torrents(
    home: Home, manifest: Manifest, ask: Ask = unknown, own: frozenset[bytes] = frozenset()
) -> dict[bytes, Held]:
    """What is here of each torrent of an image.

    Args:
        ask: for what p2pcloopd alone knows.
        own: torrents of what was published here (`own_torrents`).

    Raises:
        StorageError: the system refused.
    """
    return {
        layer.torrent: _look_at(home, layer, ask(layer.torrent) or {}, own=layer.torrent in own)
        for layer in manifest.all_layers
    }


def own_torrents(home: Home, manifest: Manifest) -> frozenset[bytes]:
    """The torrents of an image that were published from this home, and never fetched.

    Raises:
        UsageError, StorageError: keys or manifests cannot be read.
    """
    ours = our_keys(home.keys)
    if manifest.key not in ours:
        return frozenset()
    known: dict[bytes, Manifest] = {}
    with suppress(P2pcloopError):  # a damaged one leaves the others
        known.update(known_manifests(home))
    return frozenset(layer.torrent for layer in published_layers(manifest, known, ours))


def _look_at(home: Home, layer: LayerRef, told: Mapping[str, Any], *, own: bool) -> Held:
    directory = home.torrents / layer.torrent.hex()
    size = layer.index_length + layer.pack_length
    pieces = -(-size // layer.piece_length)
    have = bytes(pieces)
    with suppress(NotHereError, FormatError), HaveView(directory / "have") as view:
        if view.pieces == pieces:
            have = view.each()
    ranges = Ranges()
    for offset, length in kept_ranges(directory):
        with suppress(ValueError):  # it overlaps another: the log was written meanwhile
            ranges.add(offset, length)
    return Held(
        layer.piece_length,
        have,
        own=own,
        ranges=ranges,
        coming=frozenset(told.get("coming", ())),
        senders=told.get("of", b""),
        names=told.get("senders", ()),
    )
