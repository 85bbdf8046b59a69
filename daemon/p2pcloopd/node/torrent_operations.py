"""Operations on one torrent (docs/formats/control.md)."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import trio

from p2pcloop.formats.link import MAX_PEERS, format_peer
from p2pcloop.formats.manifest import INFO_HASH_SIZE
from p2pcloop.protocol.control import MAX_READ
from p2pcloop.units import MAX_IMAGE_SIZE
from p2pcloopd.control_server import Call
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.fetch.backfill import fill as fill_torrent
from p2pcloopd.node.arguments import check_peer, check_url, fields_of, only_torrent, take_torrent
from p2pcloopd.node.node import Node
from p2pcloopd.node.waiting import REPORT_SECONDS
from p2pcloopd.tasks import run_while

_VERIFY_BYTES = 64 << 20


async def add(node: Node, call: Call) -> dict[str, Any]:
    """Know a torrent, and more places where it may be had; fetches nothing yet."""
    fields = fields_of(call)
    info_hash = fields.data("torrent", INFO_HASH_SIZE)
    peers = [check_peer(item) for item in fields.items("peers", MAX_PEERS)]
    trackers = [check_url(url) for url in fields.items("trackers", MAX_PEERS)]
    web_seeds = [check_url(url) for url in fields.items("web_seeds", MAX_PEERS)]
    fields.end()
    await node.add(info_hash, peers, trackers, web_seeds)
    return {}


async def layout(node: Node, call: Call) -> dict[str, Any]:
    """The torrent's files; waits for its metadata."""
    torrent = only_torrent(node, call)
    found = await node.reports.report_if_waiting(torrent, call, torrent.metadata)
    return {
        "name": found.name,
        "files": [[str(path), size] for path, size in found.files],
        "piece_length": found.piece_length,
        "size": found.total_size,
    }


async def pieces(node: Node, call: Call) -> dict[str, Any]:
    """Who sent the pieces of a torrent, as far as that is known, and which are on their way."""
    torrent = only_torrent(node, call)
    senders = torrent.store.senders
    return {
        "of": bytes(senders.of),
        "senders": [
            each if isinstance(each, str) else format_peer(cast("tuple[str, int]", each))
            for each in senders.all
        ],
        "coming": torrent.coming(),
    }


async def read(node: Node, call: Call) -> dict[str, Any]:
    """Bytes of the torrent's content, for the reader to verify; waits as long as it takes."""
    fields = fields_of(call)
    torrent = take_torrent(node, fields)
    offset = fields.integer("offset", 0, MAX_IMAGE_SIZE)
    length = fields.integer("length", 1, MAX_READ)
    heal = fields.boolean("heal")
    fields.end()
    node.engine.demand.record_read()
    # The answer alone takes room: a client that waits for peers leaves it to others.
    work = partial(torrent.read_range, offset, length, heal=heal, hold=call.hold)
    return {"data": await node.reports.report_rate(torrent, call, work)}


async def fetch(node: Node, call: Call) -> dict[str, Any]:
    """Fetch the whole torrent."""
    torrent = only_torrent(node, call)

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

    async def work() -> None:
        await torrent.metadata()
        await node.room.used(torrent)  # before it is all here: it must not go at once
        await fetch_all(torrent)

    await run_while(report, partial(node.reports.report_if_waiting, torrent, call, work))
    node.room.look_again()
    return {}


async def fill(node: Node, call: Call) -> dict[str, Any]:
    """Fetch the whole torrent when no reader needs the time."""
    fields = fields_of(call)
    torrent = take_torrent(node, fields)
    rate = fields.integer("rate", 0, MAX_IMAGE_SIZE)
    fields.end()
    await fill_torrent(torrent, rate)
    return {}


async def verify(node: Node, call: Call) -> dict[str, Any]:
    """Compare what is here with its hashes; what is wrong is dropped, to be fetched again."""
    torrent = only_torrent(node, call)
    found = await node.reports.report_if_waiting(torrent, call, torrent.metadata)
    step = max(1, _VERIFY_BYTES // found.piece_length)
    bad: list[int] = []
    for first in range(0, found.pieces, step):
        pieces = range(first, min(first + step, found.pieces))
        bad += await torrent.verify(pieces)
        await call.emit("progress", checked=pieces.stop, pieces=found.pieces)
    return {"pieces": found.pieces, "bad": bad}
