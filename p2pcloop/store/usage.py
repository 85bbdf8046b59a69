"""The torrents that must stay, and why, by the manifests, pins and overlays of a home."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError, NotHereError, storage_error
from p2pcloop.formats.manifest import (
    ID_SIZE,
    INFO_HASH_SIZE,
    LayerRef,
    Manifest,
    ManifestRef,
    open_manifest,
)
from p2pcloop.formats.named import read_file
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloop.store.keys import our_keys
from p2pcloop.store.lease import leased
from p2pcloop.store.overlays import overlaid_manifests
from p2pcloop.store.pins import load_pins
from p2pcloop.store.removed import is_removed
from p2pcloop.words import tr

_MANIFEST = re.compile(rf"[0-9a-f]{{{2 * ID_SIZE}}}")


class Keep(Enum):
    """Why something is not evicted; the value completes "2.1 GB ...". The first reason counts."""

    RUNNING = tr("are in use by running guests or commands")
    READING = tr("are just being read or fetched")
    PINNED = tr("are pinned")
    OVERLAY = tr("lie below overlays")
    PUBLISHED = tr("were published from here")
    IN_PLACE = tr("belong to files that are seeded where they lie")
    LINKED = tr("have hard links elsewhere")
    NEW = tr("are of no known image yet")
    RECORDS = tr("are metadata and manifests")


@dataclass(frozen=True, slots=True)
class Usage:
    """The torrents that manifests of this home name, and those of them that must stay.

    Attributes:
        keep: torrents that must stay whole.
        named: torrents that are layers of known manifests.
    """

    keep: Mapping[bytes, Keep]
    named: frozenset[bytes]


def look_at_usage(home: Home) -> Usage:
    """Read manifests, pins, leases, overlays and keys.

    Raises:
        FormatError, MismatchError, UsageError: one of them cannot be read. Then nothing may be
            evicted, since it might have kept anything.
        StorageError: the system refused.
    """
    known = known_manifests(home)
    manifests = {id_: manifest for id_, manifest in known if not is_removed(home, id_)}
    in_use = leased(home)
    keep = {torrent: Keep.RUNNING for torrent in in_use if len(torrent) == INFO_HASH_SIZE}
    running = [(manifest_id, Keep.RUNNING) for manifest_id in in_use]
    for manifest_id, reason in [*running, *_whole_images(home)]:
        if manifest_id in manifests:
            for layer in manifests[manifest_id].all_layers:
                keep.setdefault(layer.torrent, reason)
    ours = our_keys(home.keys)
    for manifest in manifests.values():
        if manifest.key in ours:
            for layer in published_layers(manifest, manifests, ours):
                keep.setdefault(layer.torrent, Keep.PUBLISHED)
    named = frozenset(layer.torrent for m in manifests.values() for layer in m.all_layers)
    return Usage(keep, named)


def _whole_images(home: Home) -> Iterator[tuple[bytes, Keep]]:
    """The ids of manifests whose layers must all stay, even if they are not in use."""
    for manifest_id in load_pins(home):
        yield manifest_id, Keep.PINNED
    for _, ids in overlaid_manifests(home):
        for manifest_id in ids:
            yield manifest_id, Keep.OVERLAY


def published_layers(
    manifest: Manifest, known: Mapping[bytes, Manifest], ours: set[bytes]
) -> list[LayerRef]:
    """The layers of a manifest of ours that no other publisher has: this may be the only copy.

    The image that it was made from may be of another key, whose publisher has its layers. Layers of
    ancestors that are not known here stay, too.

    Args:
        manifest: signed by one of `ours`.
        known: the manifests that are known here, by id.
        ours: the public keys of this home.
    """
    theirs: set[bytes] = set()
    seen: set[bytes] = set()
    ahead = [manifest.parent, manifest.previous]
    while ahead:
        ref = ahead.pop()
        if not isinstance(ref, ManifestRef) or ref.id in seen or ref.id not in known:
            continue
        seen.add(ref.id)
        ancestor = known[ref.id]
        if ancestor.key in ours:
            ahead += [ancestor.parent, ancestor.previous]
        else:
            theirs.update(layer.torrent for layer in ancestor.all_layers)
    return [layer for layer in manifest.all_layers if layer.torrent not in theirs]


def known_manifests(home: Home) -> Iterator[tuple[bytes, Manifest]]:
    """Every manifest that is known here, by its id."""
    try:
        paths = sorted(home.manifests.iterdir())
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=home.manifests), err) from err
    for path in paths:
        if _MANIFEST.fullmatch(path.name):  # other names are files that are being written
            yield bytes.fromhex(path.name), _read_manifest(path)


def _read_manifest(path: Path) -> Manifest:
    hint = tr("delete {path}; it can be had again by its link", path=path)
    try:
        signed = open_manifest(read_file(path))
    except FileNotFoundError as err:
        raise NotHereError(tr("there is no {path}", path=path)) from err
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err
    except (FormatError, MismatchError) as err:
        raise FormatError(tr("{path} is damaged: {err}", path=path, err=err), hint=hint) from err
    if signed.id.hex() != path.name:
        raise MismatchError(tr("{path} holds another manifest", path=path), hint=hint)
    return signed.manifest
