"""Packing the blocks that a boot reads into a hot layer, on top of the layers that have them.

Its pack holds the blocks in order of first touch, in chains (formats/lzma_chain.py): a boot fetches
and decodes one file from end to end. The content of the device does not change. The other layers
and their peers do not change either (docs/design.md, "An optimized image").

Of a state the pages of the guest's kernel may come first, as a dictionary (image/dictionary.py).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import field
from itertools import chain, islice, takewhile
from typing import BinaryIO, Final

from p2pcloop.errors import UsageError
from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import build_index
from p2pcloop.formats.lzma_chain import MAX_CHAIN_CHUNKS, ChainEncoder
from p2pcloop.formats.profile import Touch
from p2pcloop.formats.seal import Seal
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.dictionary import MAX_BLOCKS
from p2pcloop.image.dictionary import MAX_CHUNKS as MAX_DICTIONARY_CHUNKS
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.build import Progress
from p2pcloop.making.changes import ZERO_BLOCK, Stretch, Target, append_block, stretches_of
from p2pcloop.making.targets import upper_stretches
from p2pcloop.store.unpacked_kernels import PageLike
from p2pcloop.units import BLOCK_SIZE

HOT_BLOCKS: Final = 64
"""Blocks of a chunk: 256 KiB, so that a boot waits for few bytes that it does not need just then.
Chunks of 512 KiB save less than a thousandth."""

CHAIN_CHUNKS = MAX_CHAIN_CHUNKS
"""Chunks of a chain. Chains of half the length make packs 3 percent larger."""

MAX_HOT_BLOCKS = MAX_BLOCKS
"""Blocks that are packed at most, the first ones: 1 GiB. No boot reads more."""

_Content = tuple[bytes, bool]
"""Of a chunk, and whether it passes the filter for x86 code."""

_CODECS = {
    (True, False): Codec.CHAIN_START,
    (True, True): Codec.CHAIN_NEXT,
    (False, False): Codec.UNFILTERED_START,
    (False, True): Codec.UNFILTERED_NEXT,
}
"""By whether a chunk passes that filter, and whether it follows one of its chain."""

LEAST_EQUAL: Final = 8
"""Pages of a kernel that must be in a guest's memory as they are in its file: a banner, tables. Of
Debian's kernel 30 of 533 are; all others have places that the kernel changed when it started."""


@dataclass(frozen=True, slots=True)
class HotLayer:
    """A hot layer that was packed.

    Attributes:
        index: bytes of the layer's index.
        chunks: of its table.
        pack_length: bytes of its pack.
        stored_blocks: blocks that the pack holds.
        zero_blocks: blocks that read as zeros.
    """

    index: bytes
    chunks: Sequence[Chunk]
    pack_length: int
    stored_blocks: int
    zero_blocks: int


def pack_hot(
    target: Target,
    touches: Iterable[Touch],
    pack: BinaryIO,
    progress: Progress,
    *,
    seal: Seal | None = None,
    kernels: Sequence[PageLike] = (),
) -> HotLayer:
    """Write the pack of a hot layer and return its index.

    Args:
        target: the device; touched blocks are read, on this thread.
        touches: blocks of that device, in the order in which a boot reads them.
        pack: the pack is written to it, from its start.
        progress: called with the bytes of the target that are packed.
        seal: seals the layer of a private image.
        kernels: of this machine; the device is then that of a state.

    Raises:
        UsageError: nothing but zeros is touched.
        NeedsPackageError: liblzma is not installed.
        P2pcloopError: the target cannot be read.
    """
    order = _Order(target)
    chunks: list[Chunk] = []
    length = blocks = 0
    for content, codec, encoded in _encode(_contents(order, list(touches), kernels)):
        stored = encoded if seal is None else seal.seal_chunk(length, encoded)
        pack.write(stored)
        count = len(content) // BLOCK_SIZE
        digest = hashlib.sha256(content).digest()
        chunks.append(Chunk(length, len(stored), count, codec, digest))
        length += len(stored)
        if len(chunks) > order.dictionary:
            blocks += count
            progress(blocks * BLOCK_SIZE)
    if not chunks:
        raise UsageError(
            "the profile names no block of the image that holds anything",
            hint="boot the image once, which records another",
        )
    index = build_index(order.runs(), chunks, image_size=target.size, pack_length=length, seal=seal)
    zeros = sum(count for _, count in stretches_of(order.zeros))
    return HotLayer(index, chunks, length, blocks, zeros)


def _contents(
    order: _Order, touches: Sequence[Touch], kernels: Sequence[PageLike]
) -> Iterator[_Content]:
    """Yield the content of each chunk: a dictionary, then what is touched.

    Neither the dictionary nor the blocks that are like its pages pass the filter for x86 code: it
    makes something else of a call at another distance from the start of a chunk.
    """
    kernel, like = _find_kernel(order, touches, kernels)
    if kernel is None:
        yield from ((each, True) for each in order.groups(order.read(touches)))
        return
    behind = like[: MAX_DICTIONARY_CHUNKS * HOT_BLOCKS]
    pages = array("I")
    for block in behind:
        append_block(pages, block)
    for each in order.dictionary_chunks(page for block in behind if (page := kernel(block))):
        yield each, False
    # None of `like` comes before them: a reader finds the pages in the order of the chunks.
    order.seen.update(like)
    at_once = takewhile(lambda touch: not touch.after, touches)
    yield from ((each, True) for each in order.groups(order.read(at_once)))
    order.seen.difference_update(like)
    for each in order.groups(order.read(Touch(*part, 0) for part in stretches_of(pages))):
        yield each, False
    yield from ((each, True) for each in order.groups(order.read(touches)))


def _find_kernel(
    order: _Order, touches: Sequence[Touch], kernels: Sequence[PageLike]
) -> tuple[PageLike | None, list[int]]:
    """The kernel that a state's guest runs, and the blocks that are like its pages, of those that
    are touched first; None if it is none of these."""
    if not kernels:
        return None, []
    like: list[list[int]] = [[] for _ in kernels]
    equal = [0 for _ in kernels]
    for block, content in order.read(touch for touch in touches if not touch.is_later):
        if content == ZERO_BLOCK:
            continue
        for number, kernel in enumerate(kernels):
            if (page := kernel(block)) is not None:
                like[number].append(block)
                equal[number] += content == page
    order.seen.clear()
    best = max(range(len(kernels)), key=equal.__getitem__)
    if equal[best] < LEAST_EQUAL:
        return None, []
    return kernels[best], like[best]


@dataclass
class _Order:
    """Groups blocks into chunks.

    Attributes:
        chunks: made so far.
        dictionary: those of them that are no content of blocks, the first ones.
        parts: for each part its first chunk, and its stretches of blocks (`stretches_of`), in
            order of first touch. A part begins with a chunk of its own.
        zeros: stretches of blocks.
        seen: blocks that `read` has yielded, or is to leave out.
    """

    target: Target
    chunks: int = 0
    dictionary: int = 0
    parts: list[tuple[int, array[int]]] = field(default_factory=list)
    zeros: array[int] = field(default_factory=lambda: array("I"))
    seen: set[int] = field(default_factory=set)

    def dictionary_chunks(self, pages: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the content of each chunk of a dictionary; to be called first."""
        while group := b"".join(islice(pages, HOT_BLOCKS)):
            self.chunks += 1
            self.dictionary += 1
            yield group

    def groups(self, blocks: Iterable[tuple[int, memoryview]]) -> Iterator[bytes]:
        """Yield the content of each chunk of a part."""
        packed = array("I")
        self.parts.append((self.chunks, packed))
        group = bytearray()
        for block, content in blocks:
            if content == ZERO_BLOCK:
                append_block(self.zeros, block)
                continue
            append_block(packed, block)
            group += content
            if len(group) == HOT_BLOCKS * BLOCK_SIZE:
                self.chunks += 1
                yield bytes(group)
                group.clear()
        if group:
            self.chunks += 1
            yield bytes(group)

    def runs(self) -> list[Run]:
        """The map; to be called after all chunks were taken."""
        runs = [Run(first, count, ZERO_CHUNK, 0, 0) for first, count in stretches_of(self.zeros)]
        for first_chunk, packed in self.parts:
            place = 0
            for first, count in stretches_of(packed):
                chunk, within = divmod(place, HOT_BLOCKS)
                runs.append(Run(first, count, first_chunk + chunk, within, HOT_BLOCKS))
                place += count
        return sorted(runs, key=lambda run: run.start)

    def read(self, touches: Iterable[Touch]) -> Iterator[tuple[int, memoryview]]:
        """Yield each touched block once, with its content."""
        for first, count in _cut((touch.start, touch.count) for touch in touches):
            new = [block for block in range(first, first + count) if block not in self.seen]
            if len(self.seen) + len(new) > MAX_HOT_BLOCKS:
                return
            self.seen.update(new)
            content = memoryview(self.target.read(first, count)) if new else memoryview(b"")
            for block in new:
                at = (block - first) * BLOCK_SIZE
                yield block, content[at : at + BLOCK_SIZE]


def adds_nothing(image: MergedImage, below: MergedImage, device: Target, lower: Target) -> bool:
    """Whether the top layer of an image only repeats content of the layers below it.

    That is so for a hot layer. For others the first blocks usually show that it is not.

    Args:
        image: with the layer.
        below: without it.
        device, lower: the devices of the two.

    Raises:
        P2pcloopError: they cannot be read.
    """
    if image.size != below.size:
        return False
    stretches = upper_stretches(image, len(image.layers) - 1, image.size)
    return all(
        (_is_zero(image, part) and _is_zero(below, part)) or device.read(*part) == lower.read(*part)
        for part in _cut(stretches)
    )


def has_chunks(layer: Layer, chunks: Sequence[Chunk], supply: Callable[[Missing], None]) -> bool:
    """Whether a layer has exactly these chunks, in this order and encoded in the same way.

    Args:
        supply: fetches missing pages of its chunk table.

    Raises:
        P2pcloopError: they cannot be fetched.
    """
    if layer.header.chunk_count != len(chunks):
        return False
    entries = (_entry(layer, number, supply) for number in range(len(chunks)))
    return all(
        (entry.id, entry.codec) == (chunk.id, chunk.codec)
        for entry, chunk in zip(entries, chunks, strict=True)
    )


def _entry(layer: Layer, number: int, supply: Callable[[Missing], None]) -> Chunk:
    while True:
        try:
            return layer.chunk(number)
        except Missing as missing:
            supply(missing)


def _is_zero(image: MergedImage, part: Stretch) -> bool:
    """Whether blocks read as zeros by the map alone."""
    return all(chunk == ZERO_CHUNK for _, chunk, _, _ in image.map.pieces(*part))


def _cut(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Cut stretches into stretches of `HOT_BLOCKS` at most."""
    for first, count in stretches:
        for at in range(first, first + count, HOT_BLOCKS):
            yield at, min(HOT_BLOCKS, first + count - at)


def _encode(contents: Iterator[_Content]) -> Iterator[tuple[bytes, Codec, bytes]]:
    """Yield the content of each chunk, its codec and its stored bytes."""
    for first in contents:
        with closing(ChainEncoder()) as encoder:
            for number, (content, filtered) in enumerate(
                chain([first], islice(contents, CHAIN_CHUNKS - 1))
            ):
                codec = _CODECS[filtered, number > 0]
                yield content, codec, encoder.encode(content, filtered=filtered)
