"""Mirrors in a directory of this machine: their layers are seeded where they lie.

libtorrent fetches from peers and from the web, not from directories. So a layer that lies in one is
taken as a `.cloop` is that the user seeds: the store gets symbolic links to it, it is hashed once,
and it must stay there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio

from p2pcloop.errors import MismatchError, storage_error
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.formats.mirror import INDEX, PACK, layer_torrent_name
from p2pcloop.words import tr
from p2pcloopd.node.node import Node

LINKS_PREFIX = "links-"


async def use_directory(node: Node, base: str, manifest: Manifest) -> None:
    """Seed those layers of an image that lie in a directory and are not all here.

    Raises:
        MismatchError: a layer there is not the one that it should be.
        StorageError: the disk refused.
    """
    before = {torrent.info_hash for torrent in node.engine.torrents}
    seeded: set[bytes] = set()
    for layer in manifest.all_layers:
        known = node.engine.get(layer.torrent)
        if known is not None and known.have_bytes == layer.index_length + layer.pack_length:
            continue
        staging = await trio.to_thread.run_sync(_link, Path(base), layer, node.home.tmp)
        if staging is None:
            continue
        try:
            # Compared before it is seeded: a link there may lead to any file of this machine.
            await node.engine.seed(staging, expected=layer.torrent)
        except MismatchError as err:
            for new in seeded - before:
                await node.engine.remove(new, node.home.tmp)
            raise MismatchError(
                tr(
                    "layer {layer_id} in {base} is not what the manifest says",
                    layer_id=layer.layer_id.hex(),
                    base=base,
                ),
                hint="make the mirror again; nothing of it was used",
            ) from err
        seeded.add(layer.torrent)


def _link(base: Path, layer: LayerRef, tmp: Path) -> Path | None:
    """Make a directory that the engine can seed; None where the layer is not there whole."""
    name = layer_torrent_name(layer.layer_id)
    lengths = {INDEX: layer.index_length, PACK: layer.pack_length}
    files = {file: base / "data" / name / file for file in lengths}
    try:
        if any(files[file].stat().st_size != length for file, length in lengths.items()):
            return None
    except OSError:
        return None  # to have a layer in part, or not at all, is no fault of a mirror
    try:
        staging = Path(tempfile.mkdtemp(prefix=LINKS_PREFIX, dir=tmp))
        folder = staging / "data" / name
        folder.mkdir(parents=True)
        for file, path in files.items():
            (folder / file).symlink_to(path.resolve())
    except OSError as err:
        raise storage_error(tr("cannot write in {tmp}", tmp=tmp), err) from err
    return staging
