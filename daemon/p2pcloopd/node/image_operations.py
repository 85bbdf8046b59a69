"""Operations on images and their manifests: publishing and resolving (docs/formats/control.md)."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError, UsageError, storage_error
from p2pcloop.formats.link import MAX_LINK_LENGTH, Link, is_link, parse_link
from p2pcloop.formats.manifest import MAX_MANIFEST_SIZE, SignedManifest, open_manifest
from p2pcloop.formats.name import parse_name
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.arguments import fields_of
from p2pcloopd.node.beside import REPORT_SECONDS, beside, tell_if_waiting
from p2pcloopd.node.control_server import Call
from p2pcloopd.node.node import Node

MANIFEST_FILE = "manifest"
MANIFEST_PREFIX = "manifest-"


async def seed(node: Node, call: Call) -> dict[str, Any]:
    """Make a torrent of what lies in a directory that a command made in tmp/, and serve it."""
    fields = fields_of(call)
    staging = Path(fields.text("staging", 4096))
    fields.end()
    if staging.parent != node.home.tmp or staging.name in ("", ".", ".."):
        raise UsageError(f"{staging} is not directly in {node.home.tmp}")
    if staging.is_symlink() or not staging.is_dir():  # noqa: ASYNC240  two stat(2)
        raise UsageError(f"{staging} is not a directory")
    hashed = (0, 0)

    def note(done: int, size: int) -> None:
        nonlocal hashed
        hashed = (done, size)

    async def report() -> None:
        while True:
            await trio.sleep(REPORT_SECONDS)
            await call.emit("progress", hashed=hashed[0], size=hashed[1])

    torrent = await beside(report, partial(node.engine.seed, staging, note))
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
    fields.end()
    signed = open_manifest(data)
    for layer in signed.manifest.layers:
        if node.engine.get(layer.torrent) is None:
            raise NotHereError(f"layer {layer.torrent.hex()} of the manifest is not seeded here")
    staging = await trio.to_thread.run_sync(_stage_manifest, node.home.tmp, data)
    torrent = await node.engine.seed(staging, lambda _done, _size: None)
    link = Link(
        name=signed.manifest.name,
        manifest_id=signed.id,
        manifest_torrent=torrent.info_hash,
        pack_torrent=signed.manifest.layers[-1].torrent,
        peers=tuple(node.addresses()),
    )
    await _keep(node, signed, link)
    return {"id": signed.id, "name": str(link.name), "link": str(link)}


async def resolve(node: Node, call: Call) -> dict[str, Any]:
    """Get the manifest that a link or a known name stands for; know its layers."""
    fields = fields_of(call)
    ref = fields.text("ref", MAX_LINK_LENGTH)
    fields.end()
    link = parse_link(ref) if is_link(ref) else node.records.name(parse_name(ref)).link
    torrent = await node.add(link.manifest_torrent, link.peers, link.trackers, ())
    try:
        signed = await trio.to_thread.run_sync(node.records.manifest, link.manifest_id)
    except (NotHereError, FormatError, MismatchError):
        signed = await _fetch_manifest(node, torrent, call)
    if signed.id != link.manifest_id or signed.manifest.name != link.name:
        raise MismatchError(
            f"the link's torrent holds another manifest than that of {link.name}",
            hint="the link was changed or put together wrongly: ask for a new one",
        )
    await _keep(node, signed, link)
    for layer in signed.manifest.layers:
        top = layer.torrent == link.pack_torrent
        await node.add(layer.torrent, link.peers, link.trackers, link.web_seeds if top else ())
    return {
        "id": signed.id,
        "name": str(link.name),
        "link": str(link),
        "manifest": signed.data,
        "peers": [list(peer) for peer in link.peers],
    }


def _stage_manifest(tmp: Path, data: bytes) -> Path:
    try:
        staging = Path(tempfile.mkdtemp(prefix=MANIFEST_PREFIX, dir=tmp))
        (staging / "data").mkdir()
        (staging / "data" / MANIFEST_FILE).write_bytes(data)
    except OSError as err:
        raise storage_error(f"cannot write in {tmp}", err) from err
    return staging


async def _fetch_manifest(node: Node, torrent: Torrent, call: Call) -> SignedManifest:
    found = await tell_if_waiting(torrent, call, node.config.waiting_after, torrent.metadata)
    if [str(path) for path, _ in found.files] != [MANIFEST_FILE]:
        raise FormatError("the link's torrent is not that of a manifest")
    if not 0 < found.total_size <= MAX_MANIFEST_SIZE:
        raise FormatError(f"a manifest of {found.total_size} bytes is over {MAX_MANIFEST_SIZE}")
    read = partial(torrent.read, 0, found.total_size)
    return open_manifest(await tell_if_waiting(torrent, call, node.config.waiting_after, read))


async def _keep(node: Node, signed: SignedManifest, link: Link) -> None:
    async with node.records_lock:
        await trio.to_thread.run_sync(node.records.keep, signed, link)
