"""Operations on the room on disk (docs/formats/control.md)."""

from __future__ import annotations

from typing import Any

import trio

from p2pcloop.formats.config import MAX_QUOTA
from p2pcloop.formats.manifest import ID_SIZE
from p2pcloop.store.have import MAX_PIECES
from p2pcloopd.control_server import Call
from p2pcloopd.node.arguments import fields_of, take_torrent
from p2pcloopd.node.node import Node


async def pin(node: Node, call: Call) -> dict[str, Any]:
    """Never evict anything of an image."""
    fields = fields_of(call)
    manifest_id = fields.data("manifest", ID_SIZE)
    fields.end()
    signed = await trio.to_thread.run_sync(node.records.manifest, manifest_id)
    return {"was": await node.room.pin(manifest_id, str(signed.manifest.name))}


async def unpin(node: Node, call: Call) -> dict[str, Any]:
    """Let an image be evicted again."""
    fields = fields_of(call)
    manifest_id = fields.data("manifest", ID_SIZE)
    fields.end()
    return {"was": await node.room.pin(manifest_id, None)}


async def booted(node: Node, call: Call) -> dict[str, Any]:
    """Note which pieces of a torrent a boot used."""
    fields = fields_of(call)
    torrent = take_torrent(node, fields)
    pieces = fields.blob("pieces", MAX_PIECES // 8)
    fields.end()
    await node.room.used(torrent, pieces)
    return {}


async def released(node: Node, call: Call) -> dict[str, Any]:
    """A lease has ended: what it held may go, if that is needed."""
    fields_of(call).end()
    node.room.look_again()
    return {}


async def gc(node: Node, call: Call) -> dict[str, Any]:
    """Remove what nothing names, and evict down to a quota."""
    fields = fields_of(call)
    quota: int | None = fields.integer("quota", -1, MAX_QUOTA)
    dry_run = fields.boolean("dry_run")
    fields.end()
    if quota == -1:
        quota = node.room.quota
    done = await node.room.collect(quota, dry_run=dry_run)
    return {
        "quota": quota,
        "room": done.first.room,
        "left": done.left,
        "removed": list(done.removed),
        "evicted": [[torrent, len(pieces)] for torrent, pieces in done.evicted.items()],
        "kept": {reason.name.lower(): size for reason, size in done.last.kept.items()},
    }
