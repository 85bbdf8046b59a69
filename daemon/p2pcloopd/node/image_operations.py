"""Operations on images and their manifests: publishing and resolving (docs/formats/control.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import MismatchError, NotHereError, UsageError
from p2pcloop.formats.link import MAX_LINK_LENGTH, format_peer
from p2pcloop.formats.manifest import (
    ID_SIZE,
    INFO_HASH_SIZE,
    MAX_MANIFEST_SIZE,
    Manifest,
    ManifestRef,
    open_manifest,
)
from p2pcloop.formats.name import KEY_SIZE, parse_name
from p2pcloop.formats.place import is_url
from p2pcloop.formats.record import MAX_RECORD_SIZE, Record, open_record
from p2pcloop.formats.seal import SECRET_SIZE, check_secret
from p2pcloop.formats.signed import MAX_VERSION
from p2pcloop.store.removed import unmark_removed
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.names.lookup import HISTORY_SECONDS
from p2pcloopd.node.arguments import fields_of
from p2pcloopd.node.links import make_link
from p2pcloopd.node.manifests import get_manifest, serve_manifest
from p2pcloopd.node.node import Node
from p2pcloopd.node.resolving import Found, VersionFinder, parse_target
from p2pcloopd.node.waiting import REPORT_SECONDS
from p2pcloopd.tasks import run_while

MAX_REF = MAX_LINK_LENGTH
"""Characters of a link, or of a directory's path with a name."""


async def seed(node: Node, call: Call) -> dict[str, Any]:
    """Make a torrent of what lies in a directory that a command made in tmp/, and serve it."""
    fields = fields_of(call)
    staging = Path(fields.path("staging", 4096))
    fields.end()
    if staging.parent != node.home.tmp or staging.name in ("", ".", ".."):
        raise UsageError(
            tr("{staging} is not directly in {tmp}", staging=staging, tmp=node.home.tmp)
        )
    if staging.is_symlink() or not staging.is_dir():  # noqa: ASYNC240  two stat(2)
        raise UsageError(tr("{staging} is not a directory", staging=staging))
    hashed = (0, 0)

    def note(done: int, size: int) -> None:
        nonlocal hashed
        hashed = (done, size)

    async def report() -> None:
        while True:
            await trio.sleep(REPORT_SECONDS)
            await call.emit("progress", hashed=hashed[0], size=hashed[1])

    torrent = await run_while(report, partial(node.engine.seed, staging, note))
    found = await torrent.metadata()
    return {
        "torrent": torrent.info_hash,
        "piece_length": found.piece_length,
        "size": found.total_size,
    }


async def seed_manifest(node: Node, call: Call) -> dict[str, Any]:
    """Serve a signed manifest, keep it, and make the link to it."""
    fields = fields_of(call)
    data = fields.blob("manifest", MAX_MANIFEST_SIZE)
    public = fields.boolean("public") if "public" in fields else False
    secret = fields.optional_data("secret", SECRET_SIZE)
    fields.end()
    signed = open_manifest(data)
    manifest = signed.manifest
    layers = _layers_of(node, manifest)
    if secret is not None:
        check_secret(manifest.key_check, secret)
    async with node.records_lock:
        node.records.check_version(manifest.name, manifest.version, signed.id)
        torrent = await serve_manifest(node, signed, public=public)
        served = node.engine.get(torrent)
        public |= served is not None and served.peers.sources.public  # it stays so
        if manifest.withdrawn and manifest.previous is not None and manifest.previous.torrent:
            # Told to all who were told of what it withdraws.
            before = node.engine.get(manifest.previous.torrent)
            public |= before is not None and before.peers.sources.public
            await node.engine.add(torrent, public=public)
        own = [*map(format_peer, node.addresses()), *node.urls()]
        await trio.to_thread.run_sync(node.link_places.note, own)
        link = make_link(node, signed, torrent, layers, public=public, secret=secret)
        kept = await trio.to_thread.run_sync(node.records.keep, signed, link)
        await trio.to_thread.run_sync(unmark_removed, node.home, signed.id)
    if public:
        for layer in manifest.all_layers:
            await node.engine.add(layer.torrent, public=True)
    return {
        "id": signed.id,
        "name": str(link.name),
        "link": str(kept.link),
        "manifest_torrent": torrent,
        "public": public,
        "announced": public and node.announces(),
    }


def _layers_of(node: Node, manifest: Manifest) -> list[Torrent]:
    """The torrents of a manifest's layers, which clients that get its link ask this node for."""
    layers = []
    for layer in manifest.all_layers:
        known = node.engine.get(layer.torrent)
        if known is None:
            raise NotHereError(
                tr(
                    "layer {torrent} of the manifest is not seeded here",
                    torrent=layer.torrent.hex(),
                )
            )
        known.completion.hurry()
        layers.append(known)
    return layers


async def seed_record(node: Node, call: Call) -> dict[str, Any]:
    """Keep the signed record of the newest manifest of a name, so that it can be asked for here.

    One of a public manifest is put into the DHT, too: by the key that comes with it, if any.
    """
    fields = fields_of(call)
    record = open_record(fields.blob("record", MAX_RECORD_SIZE))
    seed = fields.optional_data("key", KEY_SIZE)
    fields.end()
    key = None if seed is None else _key_of(record.record, seed)
    async with node.records_lock:
        known = node.records.name(record.record.name)
        signed = await trio.to_thread.run_sync(node.records.manifest, known.manifest_id)
        keep = partial(node.records.keep, signed, known.link, record=record)
        await trio.to_thread.run_sync(keep)
    if node.announcer is not None:
        node.announcer.announce(record.record.name, key)
    return {}


def _key_of(record: Record, seed: bytes) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    if key.public_key().public_bytes_raw() != record.key:
        raise MismatchError(
            tr("the key that came with the record of {record} is another one", record=record.name)
        )
    return key


async def resolve(node: Node, call: Call) -> dict[str, Any]:
    """Find a version of an image by a link, or by a name and where to ask; know its layers."""
    fields = fields_of(call)
    target = parse_target(fields.path("ref", MAX_REF))
    at = fields.integer("at", 0, MAX_VERSION) if "at" in fields else 0
    look = fields.boolean("look") if "look" in fields else False
    withdrawn = fields.boolean("withdrawn") if "withdrawn" in fields else False
    fields.end()
    known = node.records.find(target.place.name)
    found = await VersionFinder(node, call).find(target, at=at, look=look)
    signed, link = found.signed, found.lead.link
    if signed.manifest.withdrawn and not withdrawn:
        raise _withdrawn_error(signed.manifest)
    await know_layers(node, found)
    return {
        "id": signed.id,
        "name": str(link.name),
        "version": signed.manifest.version,
        "before": known.version if known is not None else 0,
        "link": str(link),
        "manifest": signed.data,
        "peers": [list(peer) for peer in link.peers],
    }


def _withdrawn_error(manifest: Manifest) -> NotHereError:
    day = datetime.fromtimestamp(manifest.created, UTC).date()
    why = f": {manifest.message}" if manifest.message else tr(", without a word why")
    return NotHereError(
        tr(
            "{manifest} was withdrawn by its publisher on {day}{why}",
            manifest=manifest.name,
            day=day,
            why=why,
        ),
        hint=tr(
            "older versions by number: --at {version}; `p2pcloop log` has them",
            version=manifest.version - 1,
        ),
    )


async def manifest(node: Node, call: Call) -> dict[str, Any]:
    """Get a manifest that another one names, for its history to be told; in a bounded time."""
    fields = fields_of(call)
    torrent = fields.blob("torrent", INFO_HASH_SIZE)
    ref = ManifestRef(fields.data("id", ID_SIZE), torrent or None)
    near = parse_name(fields.text("near", MAX_REF))
    fields.end()
    link = node.records.name(near).link
    new = node.engine.get(torrent) is None
    # Links name no directories.
    directories = [reader for reader in node.readers.known if not is_url(reader.base)]
    with trio.move_on_after(HISTORY_SECONDS):
        return {"manifest": (await get_manifest(node, ref, link, call, directories)).data}
    if new:
        await node.engine.remove(torrent, node.home.tmp)
    raise NotHereError(
        tr(
            "manifest {id} did not come within {history_seconds:.0f} s",
            id=ref.id.hex(),
            history_seconds=HISTORY_SECONDS,
        )
    )


async def know_layers(node: Node, found: Found) -> None:
    """Know the torrents of all layers, and where they may be had."""
    for layer in found.signed.manifest.all_layers:
        await node.add_layer(layer, found.lead.link, found.lead.mirrors)
