"""The operation `stream`: what a reader will want, sent as it comes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2pcloop.errors import FormatError, NotHereError
from p2pcloopd.engine.fetch.tuning import TUNING
from tests.support.programs import Node, Nodes
from tests.support.waiting import wait_until

from .conftest import publish_version

PIECE = 1 << 14


def stream(node: Node, ranges: list[list[object]]) -> dict[int, bytes]:
    """Ask for ranges; return what was sent, by number."""
    found: dict[int, bytes] = {}

    def take(event: str, fields: dict[str, Any]) -> None:
        if event == "data":
            found[fields["number"]] = fields["data"]

    with node.connect() as client:
        assert client.call("stream", take, ranges=ranges) == {}
    return found


def test_ranges_are_sent_as_they_come_and_then_are_here(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    published = publish_version(publisher, content)
    reader.call("resolve", ref=published["link"])
    torrent, whole = published["torrent"], b"i" * 4096 + content
    places = [(7 * PIECE + 5, 40_000), (0, 100), (7 * PIECE, 10), (len(whole) - 3, 3)]
    ranges = [[torrent, offset, length] for offset, length in places]
    found = stream(reader, ranges)
    assert found == {n: whole[at : at + length] for n, (at, length) in enumerate(places)}
    [known] = [t for t in reader.call("status")["torrents"] if t["info_hash"] == torrent]
    assert known["have_bytes"] < len(whole) // 2

    wait_until(lambda: not stream(reader, ranges), "what is durable is not sent")


def test_ranges_come_in_their_order_also_where_the_metadata_comes_later(nodes: Nodes) -> None:
    # More than what is asked for whole, in whatever order it comes (engine/fetch/backfill.py).
    content = random.Random(1).randbytes(5 << 20)
    # By peers alone: how late a range of HTTP comes depends on how busy the machine is.
    publisher = nodes.start("upload_limit = 400000\n[http]\nlisten = []")
    published, reader = publish_version(publisher, content), nodes.start()
    reader.call("resolve", ref=published["link"])
    wanted = range(63, 3, -1)
    order: list[int] = []

    def take(event: str, fields: dict[str, Any]) -> None:
        if event == "data":
            order.append(fields["number"])

    with reader.connect() as client:
        ranges = [[published["torrent"], piece * PIECE, 1] for piece in wanted]
        client.call("stream", take, ranges=ranges)
    assert sorted(order) == list(range(60))
    # What is asked for at once may come in any order: a window of 128 KiB of peers, and beside it
    # a range of 256 KiB of the node's HTTP server (engine/fetch/range_requests.py). Shuffled it is
    # some 50.
    at_once = ((128 << 10) + TUNING.min_range) // PIECE
    assert max(abs(at - number) for at, number in enumerate(order)) <= at_once


@pytest.mark.parametrize(
    "ranges",
    [None, [1], [[b"x", 0, 1]], [[b"x" * 20, 0]], [[b"x" * 20, -1, 1]], [[b"x" * 20, 0, 1 << 23]]],
)
def test_what_is_no_range_is_refused(nodes: Nodes, ranges: object) -> None:
    node = nodes.start()
    with pytest.raises(FormatError):
        node.call("stream", ranges=ranges)


def test_an_unknown_torrent_is_refused(nodes: Nodes) -> None:
    node = nodes.start()
    with pytest.raises(NotHereError):
        node.call("stream", ranges=[[b"x" * 20, 0, 1]])


def test_a_reader_of_a_slow_link_is_told_how_fast_it_is(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start("upload_limit = 30000"), nodes.start()
    published = publish_version(publisher, content)
    reader.call("resolve", ref=published["link"])
    told: list[dict[str, Any]] = []

    def take(event: str, fields: dict[str, Any]) -> None:
        if event == "slow":
            told.append(fields)

    with reader.connect() as client:
        torrent = published["torrent"]
        client.call("layout", torrent=torrent)
        client.call("read", take, torrent=torrent, offset=0, length=120_000, heal=False)
    assert told
    assert 0 < told[-1]["rate"] < 60_000
    assert told[-1]["peers"] == publisher.call("status")["listen"]
