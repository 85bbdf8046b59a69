"""The operation `stream`: bytes that a reader will want soon, sent as they come."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from p2pcloop.errors import FormatError, P2pcloopError
from p2pcloop.formats.manifest import INFO_HASH_SIZE
from p2pcloop.protocol.control import MAX_ITEMS, MAX_READ
from p2pcloop.units import MAX_IMAGE_SIZE
from p2pcloopd.control_server import Call, Room
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.arguments import fields_of, known_torrent
from p2pcloopd.node.node import Node

_Range = tuple[Torrent, int, int]


async def stream(node: Node, call: Call) -> dict[str, Any]:
    """Fetch ranges in about this order, behind every reader who is kept waiting, and send them.

    A guess is not fetched where it would keep the line busy for long.
    """
    fields = fields_of(call)
    ranges = [_check_range(node, item) for item in fields.items("ranges", MAX_ITEMS)]
    guess = "guess" in fields and fields.boolean("guess")
    fields.end()
    node.engine.demand.record_read()
    if guess:
        ranges = [each for each in ranges if each[0].guess_is_worth_it(each[2])]
    await _fetch_all(call, ranges, node.engine.tuning.lookahead)
    return {}


async def _fetch_all(call: Call, ranges: list[_Range], lookahead: int) -> None:
    torrents = {torrent.info_hash: torrent for torrent, _, _ in ranges}.values()
    # Of many, peers give the pieces round them; one alone is asked for as what a reader waits for.
    alone = len(ranges) == 1
    room = Room(lookahead)
    failures: list[P2pcloopError] = []

    async def fetch(number: int, wanted: _Range) -> None:
        torrent, offset, length = wanted
        try:
            if not await _is_here(torrent, offset, length):
                data = await torrent.read_range(offset, length, ahead=True, exact=alone)
                await call.emit("data", number=number, data=data)
        except P2pcloopError as err:
            failures.append(err)
            nursery.cancel_scope.cancel()
        room.give_back(length)

    for torrent in torrents:
        torrent.want_metadata()
    # In their order: tasks that wait for one event go on in any, as do those that begin at once.
    if not alone:
        for torrent in torrents:
            await torrent.metadata()
    async with trio.open_nursery() as nursery:
        for number, wanted in enumerate(ranges):
            await room.claim(wanted[2])
            nursery.start_soon(partial(fetch, number, wanted))
            await trio.lowlevel.checkpoint()
    if failures:
        raise failures[0]


async def _is_here(torrent: Torrent, offset: int, length: int) -> bool:
    """Whether a range is durable: its reader finds it on the disk without help."""
    await torrent.metadata()
    return torrent.has(offset, length)


def _check_range(node: Node, item: object) -> _Range:
    match item:
        case [bytes(info_hash), int(offset), int(length)] if (
            len(info_hash) == INFO_HASH_SIZE
            and 0 <= offset < MAX_IMAGE_SIZE
            and 0 < length <= MAX_READ
        ):
            return known_torrent(node, info_hash), offset, length
    raise FormatError("a range is not [torrent, offset, length]")
