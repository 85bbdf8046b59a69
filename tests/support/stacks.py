"""Stacks of layers in memory, each a delta over those before it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.formats.index import IndexHeader, open_index
from p2pcloop.formats.seal import Seal
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer, Pack
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.changes import Base, Changes, Stretch, Target, find_changes
from p2pcloop.making.delta import Delta, Reuse, pack_delta
from p2pcloop.making.encoding import DELTA, Shape
from p2pcloop.making.hot import HotLayer
from p2pcloop.making.moved import MovedBlocks
from p2pcloop.store.unpacked_kernels import PageLike
from tests.support.images import MemoryContent, ignore, read_views

SMALL = Shape(2, 4, 1)


class BytesTarget:
    """A device in memory; all of it may differ, or what is said."""

    def __init__(self, data: bytes, stretches: Iterable[Stretch] | None = None) -> None:
        self.data = data
        self.size = len(data)
        self._stretches = [(0, len(data) // 4096)] if stretches is None else list(stretches)

    def next_data(self, block: int) -> int:
        return block

    def stretches(self) -> Iterable[Stretch]:
        return self._stretches

    def read(self, block: int, count: int) -> bytes:
        return self.data[block * 4096 : (block + count) * 4096]


def refuse(_missing: Missing) -> bool:
    """No node answers."""
    return False


@dataclass
class Stack:
    """Layers from base to top."""

    layers: list[tuple[IndexHeader, MemoryContent, Seal | None]] = field(default_factory=list)

    def open(self, kernels: Sequence[PageLike] = ()) -> MergedImage:
        """A new image of the stack, on a machine that has these kernels."""
        packs = {
            header.layer_id: Pack(content, header.index_length, header.pack_length, seal)
            for header, content, seal in self.layers
        }
        return MergedImage(
            [
                Layer(
                    content,
                    header,
                    seal=seal,
                    sources=[packs[key] for key in header.sources],
                    kernels=kernels,
                )
                for header, content, seal in self.layers
            ]
        )

    def read(self) -> bytes:
        """All that the device holds."""
        image = self.open()
        return read_views(ImageDevice(image), 0, [image.size])

    def changes(self, target: Target) -> Changes:
        """What of a target differs from the stack."""
        return find_changes(target, Base(self.open() if self.layers else None, refuse), ignore)

    def add(
        self, target: Target, *, secret: bytes | None = None, shape: Shape = DELTA, **reuse: Any
    ) -> Delta:
        """Lay the delta of a target on top; `reuse` are fields of `Reuse`."""
        changes = self.changes(target)
        pack = io.BytesIO()
        seal = None if secret is None else Seal.new(secret)
        if self.layers:
            image = self.open()
            reuse = {"base": image, "find": MovedBlocks(image, changes).find} | reuse
        delta = pack_delta(changes, target, pack, ignore, Reuse(**reuse), seal=seal, shape=shape)
        self.push(delta, pack.getvalue(), seal)
        return delta

    def push(self, delta: Delta | HotLayer, pack: bytes, seal: Seal | None = None) -> None:
        """Lay a layer on top that is made already."""
        header = open_index(delta.index)
        assert header.pack_length == len(pack) == delta.pack_length
        self.layers.append((header, MemoryContent(delta.index + pack), seal))

    def packed_blocks(self) -> list[bytes]:
        """The content of the top layer's own pack, block by block."""
        image = self.open()
        layer = image.layers[-1]
        found = []
        for number in range(layer.header.chunk_count):
            if layer.chunk(number).source == 0:
                data = layer.read_chunk(number)
                found += [data[at : at + 4096] for at in range(0, len(data), 4096)]
        return found

    def zero_runs(self) -> set[int]:
        """The blocks that the top layer says to be zeros."""
        header, content, seal = self.layers[-1]
        runs = Layer(content, header, seal=seal, sources=[]).take_map()
        return {
            block for run in runs if run.chunk == ZERO_CHUNK for block in range(run.start, run.end)
        }
