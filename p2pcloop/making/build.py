"""Making layers: the index of a cloop or raw image in place, or a new pack with its index.

Chunks of zeros are in no index: blocks that no run maps read as zeros.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import BinaryIO

import zstandard

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.cloop import CloopFile
from p2pcloop.formats.index import build_index
from p2pcloop.frozen import dataclass
from p2pcloop.parallel import ordered_map
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

CHUNK_SIZE = 64 << 10
"""Bytes of a chunk of our packs: as in a cloop, the unit that a boot without a profile reads."""

PACK_LEVEL = 9
_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE
_ZEROS = bytes(CHUNK_SIZE)
_BATCH_SIZE = 1 << 20
"""Uncompressed bytes of one item of work: so long that to hand it to a thread costs little."""

Read = Callable[[int, int], bytes]
"""Returns the bytes at an offset, of a length; fewer if the file has become shorter."""

NextData = Callable[[int], int]
"""Returns the next byte, from an offset on, that is not known to be zero: holes are not read.
Called on one thread."""


def no_holes(offset: int) -> int:
    """The `NextData` of a source that may have data everywhere."""
    return offset


_Encode = Callable[[bytes], tuple[Codec, bytes]]

Progress = Callable[[int], None]
"""Called with the bytes of the device that are done."""


@dataclass
class _Table:
    """Collects chunks and runs, in the order of the device."""

    chunks: list[Chunk] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def add(self, chunk: Chunk, block: int, per_chunk: int) -> None:
        """Add a new chunk for the blocks from `block` on."""
        self.chunks.append(chunk)
        self.map(len(self.chunks) - 1, block, chunk.blocks, per_chunk)

    def map(self, number: int, block: int, blocks: int, per_chunk: int) -> None:
        """Map blocks to a chunk, from its first block on; join them with the run before."""
        if self.runs:
            last = self.runs[-1]
            chunks, within = divmod(last.count, last.per_chunk)
            if (last.end, last.chunk + chunks, within, last.per_chunk) == (
                block,
                number,
                0,
                per_chunk,
            ):
                self.runs[-1] = Run(last.start, last.count + blocks, last.chunk, 0, per_chunk)
                return
        self.runs.append(Run(block, blocks, number, 0, per_chunk))


def can_stay(cloop: CloopFile) -> bool:
    """Whether a cloop can be seeded in place: its blocks must be whole blocks of 4 KiB."""
    return cloop.index.header.block_size % BLOCK_SIZE == 0


def index_cloop(cloop: CloopFile, pack_length: int, progress: Progress) -> bytes:
    """Return the index of a cloop in place.

    Each block of it is a chunk; blocks that share a place in the file share a chunk. Every block is
    decoded on the way, so that a damaged cloop is never published.

    Args:
        cloop: one that `can_stay`.
        pack_length: bytes of the cloop file.
        progress: is told how far it is.

    Raises:
        FormatError: a block does not decode.
        NeedsPackageError: blocks are LZO, whose library is not installed.
    """
    header = cloop.index.header
    per_chunk = header.block_size // BLOCK_SIZE
    per_batch = max(1, _BATCH_SIZE // header.block_size)
    hasher = _BlockHasher(cloop)

    def hash_batch(first: int) -> list[Chunk | None]:
        last = min(first + per_batch, header.block_count)
        return [hasher.chunk(number) for number in range(first, last)]

    table = _Table()
    numbers: dict[int, int] = {}
    block = 0
    for batch in ordered_map(hash_batch, range(0, header.block_count, per_batch)):
        for chunk in batch:
            if chunk is not None and chunk.offset in numbers:
                table.map(numbers[chunk.offset], block, per_chunk, per_chunk)
            elif chunk is not None:
                if cloop.index.has_repeats:
                    numbers[chunk.offset] = len(table.chunks)
                table.add(chunk, block, per_chunk)
            block += per_chunk
        progress(block * BLOCK_SIZE)
    return build_index(table.runs, table.chunks, image_size=header.size, pack_length=pack_length)


class _BlockHasher:
    """Makes chunks of the blocks of a cloop, on any number of threads."""

    def __init__(self, cloop: CloopFile) -> None:
        self._cloop = cloop
        self._zeros = bytes(cloop.index.header.block_size)
        self._stored_zeros: tuple[Codec, bytes] | None = None
        self._repeated: dict[int, Chunk | None] = {}

    def chunk(self, number: int) -> Chunk | None:
        """Return the chunk of a block; None if it is all zeros."""
        index = self._cloop.index
        if not index.has_repeats:
            return self._hash(number)
        offset = index.extent(number)[0]
        if offset not in self._repeated:
            self._repeated[offset] = self._hash(number)
        return self._repeated[offset]

    def _hash(self, number: int) -> Chunk | None:
        codec, stored = self._cloop.index.codec(number), self._cloop.read_stored(number)
        if (codec, stored) == self._stored_zeros:
            return None
        data = self._cloop.decode(number, stored)
        if data == self._zeros:
            # Equal blocks compress to equal bytes: the others need not be decoded.
            self._stored_zeros = codec, stored
            return None
        offset, length = self._cloop.index.extent(number)
        blocks = len(data) // BLOCK_SIZE
        return Chunk(offset, length, blocks, codec, hashlib.sha256(data).digest())


def index_raw(read: Read, size: int, progress: Progress, next_data: NextData = no_holes) -> bytes:
    """Return the index of a raw image in place: chunks of 64 KiB, stored plainly.

    Args:
        read: called with offset and length on worker threads.
        size: bytes; if it is not a multiple of 4 KiB, the device ends in zeros.
        progress: is told how far it is.
        next_data: see `NextData`.

    Raises:
        UsageError: the image is empty or larger than 16 TiB.
        FormatError: it became shorter meanwhile.
    """
    image_size = check_image_size(size)
    table = _Table()
    for piece in _scan(read, size, _plain, progress, next_data):
        chunk = Chunk(piece.offset, len(piece.stored), piece.blocks, piece.codec, piece.digest)
        table.add(chunk, piece.offset // BLOCK_SIZE, _PER_CHUNK)
    return build_index(table.runs, table.chunks, image_size=image_size, pack_length=size)


def pack_raw(
    read: Read,
    size: int,
    pack: BinaryIO,
    progress: Progress,
    next_data: NextData = no_holes,
) -> bytes:
    """Write a pack of zstd chunks of 64 KiB in the order of the device; return its index.

    Equal chunks are stored once.

    Args and raises: as for `index_raw`; and
        pack: the pack is written to it, from its current position on.
    """
    image_size = check_image_size(size)
    table = _Table()
    known: dict[bytes, int] = {}
    length = 0
    for piece in _scan(read, size, _compress, progress, next_data):
        block = piece.offset // BLOCK_SIZE
        number = known.setdefault(piece.digest, len(table.chunks))
        if number < len(table.chunks):
            table.map(number, block, piece.blocks, _PER_CHUNK)
            continue
        pack.write(piece.stored)
        chunk = Chunk(length, len(piece.stored), piece.blocks, piece.codec, piece.digest)
        table.add(chunk, block, _PER_CHUNK)
        length += len(piece.stored)
    return build_index(table.runs, table.chunks, image_size=image_size, pack_length=length)


def check_image_size(size: int) -> int:
    """Return the size of the device for an image file of `size` bytes: whole 4 KiB blocks.

    Raises:
        UsageError: the image is empty or larger than 16 TiB.
    """
    if not 0 < size <= MAX_IMAGE_SIZE:
        raise UsageError(
            tr("an image of {size} bytes cannot be used: it must hold 1 to 2^44 bytes", size=size)
        )
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk that is not all zeros, ready to be stored."""

    offset: int
    blocks: int
    digest: bytes
    codec: Codec
    stored: bytes


def _scan(
    read: Read, size: int, encode: _Encode, progress: Progress, next_data: NextData
) -> Iterator[_Piece]:
    """Cut an image into chunks, hash and encode them on all cores; zeros are left out."""

    def scan_batch(start: int) -> tuple[int, list[_Piece]]:
        length = min(_BATCH_SIZE, size - start)
        data = read(start, length)
        if len(data) != length:
            # Else its lost end would be published as zeros.
            raise FormatError(
                tr("the image became shorter than {size} bytes while it was read", size=size),
                hint="leave it alone while it is read, and try again",
            )
        pieces = []
        for at in range(0, len(data), CHUNK_SIZE):
            content = data[at : at + CHUNK_SIZE]
            if content == _ZEROS[: len(content)]:
                continue
            blocks = -(-len(content) // BLOCK_SIZE)
            digest = hashlib.sha256(content.ljust(blocks * BLOCK_SIZE, b"\0")).digest()
            pieces.append(_Piece(start + at, blocks, digest, *encode(content)))
        return start + length, pieces

    done = 0
    for done, batch in ordered_map(scan_batch, _batches(size, next_data)):
        yield from batch
        progress(done)
    if done < size:
        progress(size)


def _batches(size: int, next_data: NextData) -> Iterator[int]:
    """The start of each batch that has data; batches of holes are skipped."""
    at = 0
    while (at := next_data(at)) < size:
        at -= at % _BATCH_SIZE
        yield at
        at += _BATCH_SIZE


def _plain(content: bytes) -> tuple[Codec, bytes]:
    return Codec.NONE, content


class _Compressors(threading.local):
    """A zstd context for each thread: one must not be used by two at once."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdCompressor(level=PACK_LEVEL)


_compressors = _Compressors()


def _compress(content: bytes) -> tuple[Codec, bytes]:
    content = content.ljust(-(-len(content) // BLOCK_SIZE) * BLOCK_SIZE, b"\0")
    stored = _compressors.zstd.compress(content)
    if len(stored) < len(content):
        return Codec.ZSTD, stored
    return Codec.NONE, content
