"""Signed versions of an image without content, as a home knows them, and overlays on them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import (
    LayerRef,
    Manifest,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloopd.engine.disk.seeding import make_torrent

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def torrent_of(manifest: SignedManifest) -> bytes:
    """The info hash of a manifest's own torrent."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data" / "manifest"
        path.parent.mkdir()
        path.write_bytes(manifest.data)
        return make_torrent(Path(folder), lambda _done, _size: None)


def known_version(home: Home, number: int, content: int) -> SignedManifest:
    """Have a home know a version; those with the same `content` have the same layers."""
    layer = LayerRef(
        layer_id=bytes([content]) * 32,
        torrent=bytes([content]) * 20,
        index_length=4096,
        header_length=512,
        pack_length=8192,
        piece_length=16384,
    )
    public = KEY.public_key().public_bytes_raw()
    manifest = Manifest(public, "debian", number, 0, 4096, (layer,))
    signed = open_manifest(sign_manifest(manifest, KEY))
    Records(home).keep(signed, Link(signed.manifest.name, signed.id, torrent_of(signed)))
    return signed


def overlay_on(signed: SignedManifest, path: Path) -> Path:
    """Make an overlay as a boot of a version does."""
    manifest = signed.manifest
    Overlay.create(
        path,
        image_id=manifest.image_id,
        image_size=manifest.size,
        manifest_id=signed.id,
        name=str(manifest.name),
    ).close()
    return path
