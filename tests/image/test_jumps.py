"""Reads that jump ahead in a hot layer: the layers below have the same content, and cost less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from p2pcloop.formats.index import open_index
from p2pcloop.image import merged
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.content import StoredContent
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from tests.support.chains import SIZE, content_of, pack_chains
from tests.support.images import StoredLayer, read_views

CHUNKS = 8
RAW = b"".join(map(content_of, range(CHUNKS)))
BASE, HOT = bytes(20), bytes(range(20))


class Boot:
    """A hot layer in chains over the base that it repeats; of both only the indexes are here.

    Attributes:
        hot: the ranges of the hot layer's chunks.
        below: the range of the base's only chunk.
    """

    def __init__(self, folder: Path, *, raw: bytes = RAW, base: bool = True) -> None:
        stored = [StoredLayer(folder, raw, BASE)] if base else []
        stored.append(StoredLayer.of(folder, *pack_chains([CHUNKS]), HOT))
        self._stored = {each.ref.torrent: each for each in stored}
        self._contents = {
            each.ref.torrent: StoredContent(folder / "none", each.ref) for each in stored
        }
        layers = [self._layer(each) for each in stored]
        top = layers[-1]
        start = top.header.index_length
        self.hot = [
            ByteRange(HOT, start + chunk.offset, chunk.length)
            for chunk in map(top.chunk, range(CHUNKS))
        ]
        self.device = ImageDevice(MergedImage(layers))
        if base:
            chunk = layers[0].chunk(0)
            self.below = ByteRange(BASE, layers[0].header.index_length + chunk.offset, chunk.length)

    def _layer(self, stored: StoredLayer) -> Layer:
        index = stored.content[: stored.ref.index_length]
        header = open_index(index)
        parts = [(header.length, header.map_length)]
        parts += map(header.page_extent, range(len(header.page_hashes)))
        content = self._contents[stored.ref.torrent]
        for offset, length in parts:
            wanted = ByteRange(stored.ref.torrent, offset, length)
            content.accept(wanted, index[offset : offset + length])
        return Layer(content, header)

    def bring(self, ranges: Sequence[ByteRange]) -> None:
        for wanted in ranges:
            self._contents[wanted.torrent].accept(
                wanted, self._stored[wanted.torrent].answer(wanted)
            )

    def missing(self, number: int) -> tuple[ByteRange, ...]:
        """What a read of a chunk's second block asks for."""
        with pytest.raises(Missing) as caught:
            self.read(number)
        return caught.value.ranges

    def read(self, number: int) -> bytes:
        return read_views(self.device, number * SIZE + 4096, [4096])


def total(ranges: Sequence[ByteRange]) -> int:
    return sum(each.length for each in ranges)


def right(number: int) -> bytes:
    return content_of(number)[4096:]


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boot:
    """One in which a jump over more than two chunks costs more than the base's chunk."""
    found = Boot(tmp_path)
    few = max(sum(wanted.length for wanted in found.hot[at : at + 3]) for at in range(CHUNKS))
    monkeypatch.setattr(merged, "JUMP_SIZE", few - found.below.length)
    return found


def test_a_read_in_order_waits_for_the_hot_layer(boot: Boot) -> None:
    for number in range(CHUNKS - 2):
        assert boot.missing(number + 2) == tuple(boot.hot[number : number + 3])
        boot.bring(boot.hot[number : number + 1])
        assert boot.read(number) == right(number)


def test_where_nothing_is_on_its_way_a_read_takes_what_costs_less(boot: Boot) -> None:
    boot.device.image.rests = True
    assert boot.missing(0) == (boot.hot[0],), "less than the base's chunk"
    least = next(n for n in range(CHUNKS) if total(boot.hot[: n + 1]) > boot.below.length)
    assert boot.missing(least) == (boot.below,)


def test_a_jump_reads_from_the_layers_below(boot: Boot) -> None:
    wanted = boot.missing(7)
    assert wanted == (boot.below,)
    assert wanted[0].instead == tuple(boot.hot), "these may come before it"
    boot.bring(wanted)
    assert boot.read(7) == right(7)
    assert boot.read(2) == right(2), "what is here of the layers below is read there"
    boot.bring(boot.hot)
    assert boot.read(5) == right(5)


def test_a_jump_that_the_hot_layer_overtook(boot: Boot) -> None:
    assert boot.missing(7) == (boot.below,)
    boot.bring(boot.hot)
    assert boot.read(7) == right(7)


def test_the_base_may_be_here_before(boot: Boot) -> None:
    boot.bring([boot.below])
    assert [boot.read(number) for number in range(CHUNKS)] == [right(n) for n in range(CHUNKS)]


def test_a_read_over_many_chunks_asks_for_each_part_where_it_costs_least(boot: Boot) -> None:
    with pytest.raises(Missing) as caught:
        read_views(boot.device, 0, [len(RAW)])
    assert caught.value.ranges == (*boot.hot[:3], boot.below)
    boot.bring(caught.value.ranges)
    assert read_views(boot.device, 0, [len(RAW)]) == RAW


def test_wrong_bytes_of_a_hot_layer_are_healed(boot: Boot) -> None:
    boot.bring(boot.hot)
    wanted = boot.hot[0]
    boot._contents[HOT].accept(wanted, bytes(wanted.length))
    boot.bring([boot.below])
    healed = boot.missing(0)
    assert [(each.offset, each.heal) for each in healed] == [(wanted.offset, True)]


def test_a_hot_layer_with_nothing_below_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "JUMP_SIZE", 1)
    assert Boot(tmp_path, base=False).missing(7) == tuple(Boot(tmp_path / "2", base=False).hot)


def test_zeros_below_are_not_what_a_hot_layer_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "JUMP_SIZE", 1)
    boot = Boot(tmp_path, raw=bytes(len(RAW)) + RAW)
    assert boot.missing(7) == tuple(boot.hot)
