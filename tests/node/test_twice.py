"""Nothing comes twice: what is here in any form is not asked for again, for any reader.

Two nodes. The chunks that a boot reads are read as a block server does, by `read` and `stream`; the
reader's node counts what came although it was here, and so does the test: what came of the content
in all runs of the node is what of it is here in the end.
"""

from __future__ import annotations

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from p2pcloop.cli.node_facts import look
from p2pcloop.cli.status import _text
from p2pcloop.store.inventory import list_versions
from tests.support.programs import Node, Nodes
from tests.support.static_server import nginx
from tests.support.waiting import BOUND, wait_until

from .test_mirrors import Published, kept_parts, link_to, publish, state

SIZE = 3 << 20
CHUNK = 40_000
"""Bytes of a chunk: pieces of 16 KiB at its borders are read in part."""


def chunks(share: int, seed: int = 1) -> list[tuple[int, int]]:
    """Of each `share` chunks one, in an order as a boot's, which is not that of the pack."""
    found = [(4096 + at, CHUNK) for at in range(0, SIZE - CHUNK, share * CHUNK)]
    random.Random(seed).shuffle(found)
    return found


@pytest.fixture
def big(nodes: Nodes, tmp_path: Any) -> Published:
    return publish(nodes.start(), random.Random(2).randbytes(SIZE), tmp_path / "m")


class Reader:
    """A node that reads an image, and what came of it in all its runs."""

    def __init__(self, node: Node, image: Published) -> None:
        self.node = node
        self.image = image
        self._before = 0

    def resolve(self) -> None:
        self.node.call("resolve", ref=str(self.image.link))

    def boot(self, *, head: int = 5, share: int = 3) -> None:
        """Read as a boot does: the index, then what was foretold, and some that was not."""
        torrent, content = self.image.layer.torrent, self.image.content
        wanted = chunks(share)
        came: dict[int, bytes] = {}

        def take(_: str, fields: dict[str, Any]) -> None:
            if "data" in fields:
                came[fields["number"]] = fields["data"]

        with self.node.connect() as client:

            def read(at: int, size: int) -> None:
                answer = client.call("read", torrent=torrent, offset=at, length=size, heal=False)
                assert answer["data"] == content[at : at + size]

            for at, size in ((0, 512), (512, 3584), *wanted[:head]):
                read(at, size)
            ranges = [[torrent, at, size] for at, size in wanted]
            client.call("stream", take, ranges=ranges)
            for number, data in came.items():
                at, size = wanted[number]
                assert data == content[at : at + size]
            for at, _ in wanted[head:]:
                read(at + CHUNK - 100, 300)  # beyond the chunk's end: a neighbour's piece
            client.call("stream", ranges=[[torrent, wanted[0][0] + CHUNK + 5000, 700]])

    def fetch(self) -> None:
        self.node.call("fetch", torrent=self.image.layer.torrent)

    def fill(self) -> None:
        self.node.call("fill", torrent=self.image.layer.torrent, rate=0)

    def restart(self, number: signal.Signals) -> None:
        """End the node when what came is on its disk, and start it."""
        self.settle()
        told = state(self.node, self.image)
        assert told["received_again"] == 0
        self._before += told["received"] - told["received_hedged"]
        self.node.end(number)
        self.node.start()
        self.resolve()  # as every command does

    def settle(self) -> None:
        """Wait until what came is on the disk."""
        wait_until(lambda: self.here() == self.received())

    def received(self) -> int:
        told = state(self.node, self.image)
        assert told["received_again"] == 0
        return int(self._before + told["received"] - told["received_hedged"])

    def here(self) -> int:
        """Bytes of the content that are on the disk, in pieces and provisional."""
        parts = kept_parts(self.node, self.image)
        pieces = self.pieces()
        length = self.image.layer.piece_length
        here = [False] * len(self.image.content)
        for piece in pieces:
            here[piece * length : (piece + 1) * length] = [True] * length
        for at, size in parts:
            here[at : at + size] = [True] * size
        return sum(here[: len(self.image.content)])

    def pieces(self) -> list[int]:
        path = self.node.home.torrents / self.image.layer.torrent.hex() / "have"
        bits = path.read_bytes()[40:] if path.exists() else b""
        return [n for n in range(8 * len(bits)) if bits[n >> 3] & (0x80 >> (n & 7))]


@pytest.fixture
def reader(nodes: Nodes, big: Published) -> Reader:
    reader = Reader(nodes.start(), big)
    reader.resolve()
    return reader


def test_boots_one_after_the_other(reader: Reader) -> None:
    for _ in range(3):
        reader.boot()
        received = reader.received()
    assert reader.received() == received
    reader.settle()


def test_what_came_by_exact_ranges_is_told_as_here(reader: Reader) -> None:
    """By `images`, which reads the home, as by the node itself; it serves only readers here."""
    reader.boot()
    reader.settle()
    [version] = list_versions(reader.node.home)
    assert version.here == reader.received() > version.verified
    status = look(reader.node.home, reader.node.call("status"))
    [listed] = status["images"]
    assert listed["have_bytes"] + listed["provisional_bytes"] == version.here
    told = f"{100 * version.here // version.stored} % of"
    assert told in _text(status)
    assert told not in ("0 % of", "100 % of")


def test_boots_at_once(reader: Reader) -> None:
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(reader.boot) for _ in range(2)]:
            done.result(BOUND)
    reader.settle()


@pytest.mark.parametrize("what", ["fetch", "fill"])
def test_a_boot_while_all_is_fetched(reader: Reader, what: str) -> None:
    with ThreadPoolExecutor() as pool:
        fetching = pool.submit(getattr(reader, what))
        reader.boot()
        fetching.result(BOUND)
    assert reader.received() == len(reader.image.content)


@pytest.mark.parametrize("what", ["fetch", "fill"])
def test_a_fetch_after_a_boot(reader: Reader, what: str) -> None:
    reader.boot()
    getattr(reader, what)()
    assert reader.received() == len(reader.image.content)
    reader.boot()
    assert reader.received() == len(reader.image.content)
    wait_until(lambda: not kept_parts(reader.node, reader.image))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_between(reader: Reader, number: signal.Signals) -> None:
    reader.boot()
    reader.restart(number)
    received = reader.received()
    reader.boot()
    assert reader.received() == received
    reader.boot(share=2)
    reader.restart(number)
    reader.fetch()
    assert reader.received() == len(reader.image.content)


def test_a_slow_server_is_not_asked_beside_peers(nodes: Nodes, tmp_path: Any) -> None:
    """What takes longer than the patience of a reader comes from one, as long as it comes."""
    image = publish(nodes.start(), random.Random(2).randbytes(400_000), tmp_path / "m")
    reader = nodes.start(tuning={"exact_hedge": 2.5})  # a busy machine may be silent for a second
    with nginx(image.directory, rate=100_000) as web, reader.connect() as client:
        reader.call("resolve", ref=link_to(image, web.url, peers=True))
        read = partial(client.call, "read", torrent=image.layer.torrent, heal=False)
        read(offset=0, length=512)
        client.call("layout", torrent=image.layer.torrent)
        read(offset=4096 + 100, length=100)
        read(offset=4096, length=1 << 14)  # by its piece, since a part is here
        data = read(offset=40_000, length=300_000)["data"]
        assert data == image.content[40_000:340_000]
    told = state(reader, image)
    assert (told["received_again"], told["received_hedged"]) == (0, 0)
