"""Taking an image out of a home: its data, its profile, and what is known of its name."""

from __future__ import annotations

from typing import Any

import trio

from p2pcloop.errors import BusyError, FormatError, MismatchError, NotHereError, UsageError
from p2pcloop.formats.manifest import ID_SIZE
from p2pcloop.formats.name import parse_name
from p2pcloop.store.home import Home
from p2pcloop.store.kept import forget_chunks
from p2pcloop.store.keys import our_keys
from p2pcloop.store.lease import leased
from p2pcloop.store.name_table import MAX_HISTORY, NameRecord
from p2pcloop.store.overlays import overlaid_manifests
from p2pcloop.store.pins import load_pins
from p2pcloop.store.profiles import forget_profile
from p2pcloop.store.removed import is_removed, mark_removed
from p2pcloop.store.usage import known_manifests
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.node.arguments import fields_of
from p2pcloopd.node.node import Node

_MAX_NAME = 128
_PUBLISHED_HINT = "take it back from them first (`p2pcloop unpublish`), or give --published"
_WITHDRAWN_HINT = "it is withdrawn; --published stops serving it to those who have an older link"


async def remove(node: Node, call: Call) -> dict[str, Any]:
    """Remove versions of a name from this home: what only they need, their profiles; and, where
    they are another user's, what is known of them.

    Versions that were published from here stay known, so that the next one is numbered on.
    """
    fields = fields_of(call)
    name = parse_name(fields.text("name", _MAX_NAME))
    ids = {_id(item) for item in fields.items("manifests", MAX_HISTORY + 1)}
    published = fields.boolean("published")
    fields.end()
    async with node.room.collecting, node.records_lock:
        known = node.records.name(name)
        if strange := ids - {ref.id for ref in known.versions.values()}:
            raise NotHereError(
                tr("{name} has no manifest {strange} here", name=name, strange=min(strange).hex())
            )
        ours = name.key in await trio.to_thread.run_sync(our_keys, node.home.keys)
        if ours and not published:
            raise UsageError(
                tr(
                    "{name} was published from here: others may have it from nowhere else",
                    name=name,
                ),
                hint=_WITHDRAWN_HINT if _is_withdrawn(node, known) else _PUBLISHED_HINT,
            )
        await trio.to_thread.run_sync(_check_unused, node.home, ids)
        if ours:  # first: cut off in the middle, the rest goes with the next `rm` or `gc`
            await trio.to_thread.run_sync(mark_removed, node.home, ids)
        removed, freed = await _remove_data(node, ids, keep_newest=ours)
        if not ours:
            await trio.to_thread.run_sync(node.records.forget, name, ids)
    node.room.look_again()
    return {"removed": removed, "freed": freed, "known": ours}


def _is_withdrawn(node: Node, known: NameRecord) -> bool:
    """Whether the newest version that is known of a name takes it back."""
    try:
        return node.records.manifest(known.manifest_id).manifest.withdrawn
    except (NotHereError, FormatError, MismatchError):
        return False  # only its number is known


def _id(item: object) -> bytes:
    if not isinstance(item, bytes) or len(item) != ID_SIZE:
        raise NotHereError("an id of a manifest is 32 bytes")
    return item


def _check_unused(home: Home, ids: set[bytes]) -> None:
    """Refuse to remove what is in use, lies below an overlay or is pinned."""
    if ids & leased(home):
        raise BusyError("a guest or a command reads from it", hint="end that first")
    for path, below in overlaid_manifests(home):
        if ids & below:
            raise BusyError(
                tr("the overlay {path} lies on it, and cannot be read without it", path=path),
                hint="delete the overlay first, or export it: `p2pcloop export --overlay`",
            )
    if ids & load_pins(home).keys():
        raise BusyError("it is pinned", hint="`p2pcloop unpin` it first")


async def _remove_data(
    node: Node, ids: set[bytes], *, keep_newest: bool
) -> tuple[list[bytes], int]:
    """Remove the torrents and profiles that only these manifests need, and their own torrents.

    Args:
        keep_newest: keep the torrent of the newest manifest of the name.

    Returns:
        The torrents, and how many bytes of them were here.
    """
    manifests = await trio.to_thread.run_sync(lambda: dict(known_manifests(node.home)))
    going = [manifest for id_, manifest in manifests.items() if id_ in ids]
    staying = [
        manifest
        for id_, manifest in manifests.items()
        if id_ not in ids and not is_removed(node.home, id_)
    ]
    needed = {layer.torrent for manifest in staying for layer in manifest.all_layers}
    torrents = {layer.torrent for manifest in going for layer in manifest.all_layers} - needed
    name = next((manifest.name for manifest in going), None)
    known = None if name is None else node.records.find(name)
    if known is not None:
        # That of the newest version of a name of ours tells its number to others.
        kept = {known.manifest_id} if keep_newest else set()
        refs = (ref for ref in known.versions.values() if ref.id in ids - kept)
        torrents |= {ref.torrent for ref in refs if ref.torrent}
    here = [torrent for each in sorted(torrents) if (torrent := node.engine.get(each)) is not None]
    freed = sum(torrent.have_bytes + torrent.store.provisional_bytes for torrent in here)
    for torrent in here:
        if not await node.engine.remove(torrent.info_hash, node.home.tmp):
            raise BusyError("a reader waits for a part of it just now", hint="end that first")
    images = {manifest.image_id for manifest in going} - {each.image_id for each in staying}
    for image_id in images:
        await trio.to_thread.run_sync(forget_profile, node.home, image_id)
        await trio.to_thread.run_sync(forget_chunks, node.home, image_id)
    return [torrent.info_hash for torrent in here], freed
