"""The arguments of operations, checked whole."""

from __future__ import annotations

from p2pcloop.errors import FormatError, NotHereError
from p2pcloop.formats.link import format_peer, parse_peer
from p2pcloop.formats.manifest import INFO_HASH_SIZE
from p2pcloop.formats.packing import Fields
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.node import Node

_MAX_URL = 2048


def fields_of(call: Call) -> Fields:
    """The arguments, to be taken out one by one; any other shape is a `FormatError`.

    An argument that is nil is one that is absent.
    """
    return Fields({k: v for k, v in call.args.items() if v is not None}, f"`{call.op}`")


def take_torrent(node: Node, fields: Fields) -> Torrent:
    """Take the argument `torrent`: one that is known here, or `NotHereError`."""
    return known_torrent(node, fields.data("torrent", INFO_HASH_SIZE))


def known_torrent(node: Node, info_hash: bytes) -> Torrent:
    """The torrent of an info hash: one that is known here, or `NotHereError`."""
    torrent = node.engine.get(info_hash)
    if torrent is None:
        raise NotHereError(
            tr("torrent {info_hash} is not known here", info_hash=info_hash.hex()),
            hint="use the link of the image once",
        )
    return torrent


def only_torrent(node: Node, call: Call) -> Torrent:
    """The torrent of an operation that has no other argument."""
    fields = fields_of(call)
    torrent = take_torrent(node, fields)
    fields.end()
    return torrent


def check_peer(item: object) -> tuple[str, int]:
    """A peer, [host, port]."""
    match item:
        case [str(host), int(port)]:
            return parse_peer(format_peer((host, port)))
    raise FormatError("a peer is not [host, port]")


def check_url(item: object) -> str:
    """A URL of a tracker or a web seed."""
    schemes = ("http://", "https://", "udp://")
    if not isinstance(item, str) or len(item) > _MAX_URL or not item.startswith(schemes):
        raise FormatError(tr("{item!r} is not a URL of http, https or udp", item=str(item)[:80]))
    return item
