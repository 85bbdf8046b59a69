"""Writing an image into a mirror: static files, for any web server or a disk to carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from p2pcloop.client.fetch import fetch_all, verify_layer
from p2pcloop.client.progress import progress_bar
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify
from p2pcloop.errors import (
    CorruptError,
    FormatError,
    P2pcloopError,
    storage_error,
)
from p2pcloop.formats.link import Link, parse_link
from p2pcloop.formats.manifest import LayerRef, Manifest, ManifestRef, SignedManifest
from p2pcloop.formats.mirror import (
    ManifestPath,
    MetainfoPath,
    RecordPath,
    build_metainfo,
    extract_info,
    layer_parts,
)
from p2pcloop.formats.record import open_record
from p2pcloop.store.have import is_whole
from p2pcloop.store.home import Home
from p2pcloop.store.in_place import hold_served
from p2pcloop.store.mirror import MirrorDirectory, web_seed
from p2pcloop.store.records import Records
from p2pcloop.words import tr

_MAX_HISTORY = 4096
"""How many manifests of older versions are written too; `log` shows them."""


def write_mirror(
    ref: StoredRef, mirror: MirrorDirectory, home: Home, url: str | None, *, quiet: bool
) -> tuple[Link, int]:
    """Write the files of an image; return the link to it, and the bytes of layers written."""
    manifest = ref.signed.manifest
    known = Records(home).find(manifest.name)
    newest = known is not None and known.manifest_id == ref.signed.id
    record = open_record(known.record) if newest and known and known.record else None
    if record is not None:
        mirror.check(record)
    written = _write_missing(ref, mirror, home, quiet=quiet)
    # A URL that was given to an earlier run holds for this one, too.
    urls = mirror.urls(manifest.name) if url is None else (url,)
    for layer in manifest.all_layers:
        _write_metainfo(layer, mirror, home, urls)
    for manifest_id, signed in {each.id: each for each in _history(manifest, home)}.items():
        mirror.write(ManifestPath(manifest_id), signed.data)
    mirror.write(ManifestPath(ref.signed.id), ref.signed.data)
    link = parse_link(ref.link)
    link = replace(
        link,
        mirrors=tuple(dict.fromkeys([*urls, *link.mirrors])),
        web_seeds=tuple(dict.fromkeys([*map(web_seed, urls), *link.web_seeds])),
    ).fitted()
    if newest:
        mirror.write_link(link)
    if record is not None:
        mirror.write(RecordPath(manifest.name), record.data)
    else:
        notify(
            tr(
                "no signed record of this version of {ref} is known here: the mirror can be"
                " used by link only, not by name",
                ref=ref.name,
            )
        )
    return link, written


def _write_missing(ref: StoredRef, mirror: MirrorDirectory, home: Home, *, quiet: bool) -> int:
    """Fetch and write the layers that the mirror does not have; return their bytes."""
    missing = [layer for layer in ref.signed.manifest.all_layers if not _is_there(layer, mirror)]
    if not missing:
        return 0
    mirror.try_to_write()
    _fetch_verified(ref, missing, quiet=quiet)
    return _copy_layers(missing, mirror, home, quiet=quiet)


def _copy_layers(
    layers: list[LayerRef], mirror: MirrorDirectory, home: Home, *, quiet: bool
) -> int:
    """Write the files of layers that are here; return their bytes."""
    done, total = 0, sum(layer.index_length + layer.pack_length for layer in layers)
    with progress_bar("copying", quiet=quiet) as progress:
        progress(0, total)
        for layer in layers:
            done = _copy_layer(layer, mirror, home, progress, done)
    return done


def _copy_layer(
    layer: LayerRef,
    mirror: MirrorDirectory,
    home: Home,
    progress: Callable[[int], None],
    done: int,
) -> int:
    """Write the files of a layer that is here.

    Args:
        progress: called with the bytes that are written.
        done: bytes that were written before.

    Returns:
        Bytes that are written then.
    """
    store = home.torrents / layer.torrent.hex()
    for path, _, size in layer_parts(layer, 0, layer.index_length + layer.pack_length):
        source = hold_served(store, f"{path.torrent_name}/{path.file}")
        # An eviction that began before the lease clears the bits before it makes holes.
        still_here = partial(is_whole, store / "have")
        mirror.copy(path, source, size, still_here, partial(_add, progress, done))
        done += size
    return done


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _is_there(layer: LayerRef, mirror: MirrorDirectory) -> bool:
    whole = layer.index_length + layer.pack_length
    files = all(mirror.has(path, size) for path, _, size in layer_parts(layer, 0, whole))
    return files and _info_there(layer, mirror) is not None


def _info_there(layer: LayerRef, mirror: MirrorDirectory) -> bytes | None:
    """The info dictionary of a layer's torrent by the mirror's .torrent; None where that is none of
    it."""
    there = mirror.root / str(MetainfoPath(layer.torrent))
    try:
        return extract_info(there.read_bytes(), layer.torrent) if there.is_file() else None
    except (OSError, FormatError):
        return None


def _fetch_verified(ref: StoredRef, layers: list[LayerRef], *, quiet: bool) -> None:
    """Fetch all of the image, and compare the layers with their hashes before they are passed on.

    Raises:
        CorruptError: pieces are wrong again after they were fetched a second time.
    """
    for _ in range(2):
        fetch_all(ref, quiet=quiet)
        if not any(verify_layer(ref, layer, quiet=quiet)["bad"] for layer in layers):
            return
    raise CorruptError(
        tr("pieces of {ref} are wrong on this disk again after they were fetched", ref=ref.name),
        hint="check the disk",
    )


def _write_metainfo(
    layer: LayerRef, mirror: MirrorDirectory, home: Home, urls: tuple[str, ...]
) -> None:
    """Write a layer's .torrent, which names the known URLs of the mirror as web seeds."""
    path = MetainfoPath(layer.torrent)
    info = _info_there(layer, mirror)
    if info is not None and not urls:
        return
    if info is None:
        source = home.torrents / layer.torrent.hex() / "torrent"
        try:
            info = extract_info(source.read_bytes(), layer.torrent)
        except OSError as err:
            raise storage_error(tr("cannot read {source}", source=source), err) from err
    mirror.write(path, build_metainfo(info, [web_seed(url) for url in urls]))


def _history(manifest: Manifest, home: Home) -> Iterator[SignedManifest]:
    """The older versions that are known here, and those that each was made from; for `log`."""
    records = Records(home)
    seen: set[bytes] = set()
    while len(seen) < _MAX_HISTORY:
        parent = _find(records, manifest.parent)
        if parent is not None:
            yield parent
        before = _find(records, manifest.previous)
        if before is None or before.id in seen:
            return
        seen.add(before.id)
        yield before
        manifest = before.manifest


def _find(records: Records, ref: ManifestRef | None) -> SignedManifest | None:
    if ref is None:
        return None
    try:
        return records.manifest(ref.id)
    except P2pcloopError:
        return None  # not known here: `log` says so, too
