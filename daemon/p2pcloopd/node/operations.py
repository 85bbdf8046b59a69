"""What the control socket answers: one function an operation (docs/formats/control.md).

Each checks its arguments whole before it does anything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import (
    FormatError,
    MismatchError,
    NotHereError,
    UsageError,
)
from p2pcloop.formats.link import (
    MAX_LINK_LENGTH,
    MAX_PEERS,
    Link,
    format_peer,
    is_link,
    parse_link,
    parse_peer,
)
from p2pcloop.formats.manifest import (
    INFO_HASH_SIZE,
    MAX_MANIFEST_SIZE,
    SignedManifest,
    open_manifest,
)
from p2pcloop.formats.name import parse_name
from p2pcloop.formats.packing import Fields
from p2pcloop.protocol.control import MAX_READ
from p2pcloop.store.home import storage_error
from p2pcloop.units import MAX_IMAGE_SIZE
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.beside import beside, tell_if_waiting
from p2pcloopd.node.control_server import Call
from p2pcloopd.node.node import Node

MANIFEST_FILE = "manifest"
MANIFEST_PREFIX = "manifest-"
REPORT_SECONDS = 1
_MAX_URL = 2048
_VERIFY_BYTES = 64 << 20


async def add(node: Node, call: Call) -> dict[str, Any]:
    """Know a torrent, and more places where it may be had; fetches nothing yet."""
    fields = _fields(call)
    info_hash = fields.data("torrent", INFO_HASH_SIZE)
    peers = [_peer(item) for item in fields.items("peers", MAX_PEERS)]
    trackers = [_url(url) for url in fields.items("trackers", MAX_PEERS)]
    web_seeds = [_url(url) for url in fields.items("web_seeds", MAX_PEERS)]
    fields.end()
    await node.add(info_hash, peers, trackers, web_seeds)
    return {}


async def layout(node: Node, call: Call) -> dict[str, Any]:
    """The torrent's files; waits for its metadata."""
    torrent = _only_torrent(node, call)
    found = await tell_if_waiting(torrent, call, node.config.waiting_after, torrent.metadata)
    return {
        "name": found.name,
        "files": [[str(path), size] for path, size in found.files],
        "piece_length": found.piece_length,
        "size": found.total_size,
    }


async def read(node: Node, call: Call) -> dict[str, Any]:
    """Bytes of the torrent's content; waits for them as long as it takes."""
    fields = _fields(call)
    torrent = _torrent(node, fields)
    offset = fields.integer("offset", 0, MAX_IMAGE_SIZE)
    length = fields.integer("length", 1, MAX_READ)
    heal = fields.boolean("heal")
    fields.end()
    await call.hold(length)
    read = partial(torrent.read, offset, length, heal=heal)
    return {"data": await tell_if_waiting(torrent, call, node.config.waiting_after, read)}


async def fetch(node: Node, call: Call) -> dict[str, Any]:
    """Bring the whole torrent here."""
    torrent = _only_torrent(node, call)

    async def report() -> None:
        while True:
            await trio.sleep(REPORT_SECONDS)
            traffic = torrent.traffic()
            await call.emit(
                "progress",
                have=torrent.have_bytes,
                size=0 if torrent.layout is None else torrent.layout.total_size,
                rate=traffic.down_rate,
                peers=sum(peer.connected for peer in traffic.peers),
            )

    await beside(
        report,
        partial(tell_if_waiting, torrent, call, node.config.waiting_after, torrent.fetch_all),
    )
    return {}


async def verify(node: Node, call: Call) -> dict[str, Any]:
    """Compare what is here with its hashes; what is wrong is dropped, to be fetched again."""
    torrent = _only_torrent(node, call)
    found = await tell_if_waiting(torrent, call, node.config.waiting_after, torrent.metadata)
    step = max(1, _VERIFY_BYTES // found.piece_length)
    bad: list[int] = []
    for first in range(0, found.pieces, step):
        pieces = range(first, min(first + step, found.pieces))
        bad += await torrent.verify(pieces)
        await call.emit("progress", checked=pieces.stop, pieces=found.pieces)
    return {"pieces": found.pieces, "bad": bad}


async def seed(node: Node, call: Call) -> dict[str, Any]:
    """Make a torrent of what lies in a directory that a command made in tmp/, and serve it."""
    fields = _fields(call)
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
    fields = _fields(call)
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
    fields = _fields(call)
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


async def status(node: Node, call: Call) -> dict[str, Any]:
    """What the node has and does now."""
    _fields(call).end()
    return await node.status()


async def watch(node: Node, call: Call) -> dict[str, Any]:
    """As `status`, as an event a second, until it is cancelled."""
    _fields(call).end()
    while True:
        await call.emit("status", **await node.status())
        await trio.sleep(REPORT_SECONDS)


async def stop(node: Node, call: Call) -> dict[str, Any]:
    """Stop p2pcloopd in order, once this is answered."""
    _fields(call).end()
    call.then = node.stopping.set
    return {}


OPERATIONS: dict[str, Callable[[Node, Call], Awaitable[dict[str, Any]]]] = {
    operation.__name__: operation
    for operation in (
        add, layout, read, fetch, verify, seed, seed_manifest, resolve, status, watch, stop
    )
}  # fmt: skip


def _fields(call: Call) -> Fields:
    return Fields(call.args, f"`{call.op}`")


def _torrent(node: Node, fields: Fields) -> Torrent:
    info_hash = fields.data("torrent", INFO_HASH_SIZE)
    torrent = node.engine.get(info_hash)
    if torrent is None:
        raise NotHereError(
            f"torrent {info_hash.hex()} is not known here", hint="use the link of the image once"
        )
    return torrent


def _only_torrent(node: Node, call: Call) -> Torrent:
    fields = _fields(call)
    torrent = _torrent(node, fields)
    fields.end()
    return torrent


def _peer(item: object) -> tuple[str, int]:
    match item:
        case [str(host), int(port)]:
            return parse_peer(format_peer((host, port)))
    raise FormatError("a peer is not [host, port]")


def _url(item: object) -> str:
    schemes = ("http://", "https://", "udp://")
    if not isinstance(item, str) or len(item) > _MAX_URL or not item.startswith(schemes):
        raise FormatError(f"{str(item)[:80]!r} is not a URL of http, https or udp")
    return item


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
