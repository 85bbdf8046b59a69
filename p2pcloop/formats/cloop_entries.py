"""Entries of a cloop's index, and the bytes of the file that each block takes by them.

An entry is the offset of a block, or of the end of the last one; in V4.0 it has flags, too.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice
from operator import sub
from typing import Final

from p2pcloop.errors import FormatError
from p2pcloop.formats.chunk_table import MAX_STORED_SIZE, Codec
from p2pcloop.words import tr

COMPRESSORS: Final = (Codec.ZLIB, Codec.NONE, Codec.XZ, Codec.LZ4, Codec.LZO)
"""By their number in the upper 4 bits of V4.0's offsets (CLOOP_COMPRESSOR_* of cloop.h)."""

FLAGS_SHIFT: Final = 60
OFFSET_MASK: Final = (1 << FLAGS_SHIFT) - 1

AGAIN = "fetch or make it again"


def max_compressed_size(block_size: int, *, zlib_only: bool = True) -> int:
    """Return how many bytes a compressed block may take.

    Of zlib alone it is extract_compressed_fs's own bound; the worst of zlib (deflateBound in zlib's
    deflate.c) is 0.03 % and 13 bytes over the plain size. LZO grows most of all, by a sixteenth and
    67 bytes (LZO.FAQ), though no program stores a block that grew.
    """
    if zlib_only:
        return block_size + block_size // 1000 + 16
    return min(block_size + block_size // 16 + 67, MAX_STORED_SIZE)


def zlib_lengths(entries: Sequence[int], block_size: int) -> array[int]:
    """Return the compressed bytes of each block (typecode I) if all are zlib, end to end.

    Raises:
        FormatError: a block would take no bytes, or more than it can.
    """
    _check_lengths(entries, max_compressed_size(block_size))
    return array("I", map(sub, islice(entries, 1, None), entries))


def flagged_lengths(entries: array[int], block_size: int) -> tuple[array[int], bool]:
    """Return the compressed bytes of each block of V4.0, and whether blocks share a place.

    Raises:
        FormatError: an unknown compressor, or an impossible place or length.
    """
    _check_compressors(entries)
    offsets = array("Q", map(OFFSET_MASK.__and__, entries))
    limit = max_compressed_size(block_size, zlib_only=False)
    has_repeats = min(map(sub, islice(offsets, 1, None), offsets)) <= 0
    if has_repeats:
        lengths = _lengths_with_repeats(entries, offsets, limit)
    else:
        _check_lengths(offsets, limit)
        lengths = array("I", map(sub, islice(offsets, 1, None), offsets))
    _check_plain_blocks(entries, lengths, block_size)
    return lengths, has_repeats


def _check_compressors(entries: array[int]) -> None:
    if max(islice(entries, len(entries) - 1)) >> FLAGS_SHIFT < len(COMPRESSORS):
        return
    flags = (entry >> FLAGS_SHIFT for entry in entries)
    block, number = next((i, n) for i, n in enumerate(flags) if n >= len(COMPRESSORS))
    raise FormatError(
        tr(
            "block {block} of the cloop is of compressor {number}, and V4.0 has 0 to"
            " {compressors_count}",
            block=block,
            number=number,
            compressors_count=len(COMPRESSORS) - 1,
        ),
        hint=AGAIN,
    )


def _check_lengths(offsets: Sequence[int], limit: int) -> None:
    """Check that every block has between 1 and `limit` bytes."""
    shortest = min(map(sub, islice(offsets, 1, None), offsets))
    longest = max(map(sub, islice(offsets, 1, None), offsets))
    if shortest > 0 and longest <= limit:
        return
    lengths = map(sub, islice(offsets, 1, None), offsets)
    block, length = next((i, n) for i, n in enumerate(lengths) if not 0 < n <= limit)
    raise _damaged(f"block {block} would take {length} bytes, and it can only be 1 to {limit}")


def _lengths_with_repeats(entries: array[int], offsets: array[int], limit: int) -> array[int]:
    """Return the lengths of blocks if equal blocks have equal entries.

    A new place is always behind all earlier ones. So the distinct places are in order, and each
    block ends where the next distinct place begins.
    """
    firsts, places, numbers = array("Q"), array("Q"), array("I")
    for block, offset in enumerate(islice(offsets, len(offsets) - 1)):
        if not places or offset > places[-1]:
            numbers.append(len(places))
            firsts.append(entries[block])
            places.append(offset)
            continue
        number = bisect_left(places, offset)
        if firsts[number] != entries[block]:
            raise _damaged(f"block {block} points back to {offset}, where no block like it begins")
        numbers.append(number)
    places.append(offsets[-1])
    _check_lengths(places, limit)
    lengths = array("I", map(sub, islice(places, 1, None), places))
    return array("I", map(lengths.__getitem__, numbers))


def _check_plain_blocks(entries: array[int], lengths: array[int], size: int) -> None:
    plain = COMPRESSORS.index(Codec.NONE)
    for block, (entry, length) in enumerate(zip(entries, lengths, strict=False)):
        if entry >> FLAGS_SHIFT == plain and length != size:
            raise _damaged(f"block {block} is not compressed and has {length} of {size} bytes")


def _damaged(what: str) -> FormatError:
    return FormatError(tr("the cloop's index is damaged: {what}", what=what), hint=AGAIN)
