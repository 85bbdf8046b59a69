"""Chains of chunks: LZMA2 in which each chunk may repeat content of the chunks before it
(docs/formats/pack.md).

Each chunk is first passed through the filter for x86 code (BCJ, of the .xz format), from position 0
on, unless its codec says otherwise. Then it is stored as LZMA2 chunks. The first that is compressed
resets the state and sets its properties. None resets the dictionary, which is the filtered content
of the chain so far, but the very first of the chain. So the decoded content depends on a chunk's
own bytes and on the content of the chunks before it, and on nothing else.

The standard library decodes. It cannot encode: its encoder flushes only at the end. So liblzma, the
library that it is made of, encodes by ctypes.
"""

from __future__ import annotations

import ctypes
import lzma
import struct
from functools import cache
from typing import Final

from p2pcloop.errors import FormatError
from p2pcloop.shared_library import load_library
from p2pcloop.words import tr

MAX_CHAIN_SIZE: Final = 16 << 20
"""Bytes of content of a chain: a decoder keeps as many, and who jumps to its end decodes them."""

MAX_CHAIN_CHUNKS: Final = 64
"""Chunks of a chain: who jumps to its end looks at the entry of each."""

_LIBRARY = "liblzma.so.5"
_LZMA2 = {"id": lzma.FILTER_LZMA2, "dict_size": MAX_CHAIN_SIZE}
_FILTER = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16, "preset": 0},
]
_PLAIN_SIZE = 1 << 16
"""Bytes of an LZMA2 chunk that is not compressed."""

_SPARE_FRAMES = 64
"""LZMA2 chunks that a chunk may have beyond those of `_PLAIN_SIZE` bytes. To look at each takes
time in which no other thread runs."""

_SIZES = struct.Struct(">HH")
"""Of an LZMA2 chunk: the lower bits of its content's size and, if it is compressed, its length;
both less one."""

_END, _PLAIN_FIRST, _PLAIN = 0, 1, 2
_COMPRESSED, _WITH_PROPERTIES, _COMPRESSED_FIRST = 0x80, 0xC0, 0xE0
"""The first byte of an LZMA2 chunk, and the least one of those that say more. Those that are called
first reset the dictionary
(https://en.wikipedia.org/wiki/Lempel-Ziv-Markov_chain_algorithm#LZMA2_format)."""

_EXTREME_9 = 9 | 1 << 31
_SYNC_FLUSH = 1
_STREAM_END = 1


class ChainDecoder:
    """Decodes the chunks of a chain, in order, from the first on. It keeps `MAX_CHAIN_SIZE` bytes
    of memory at most.

    Attributes:
        broken: a chunk was wrong: nothing can be decoded after it.
    """

    def __init__(self) -> None:
        self.broken = False
        self._done = self._chunks = 0
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_LZMA2])

    def skip(self, content: bytes) -> None:
        """Take the content of the next chunk, one without the filter, as if it was decoded.

        Raises:
            FormatError: the chain is too long.
        """
        self._count(len(content))
        self._decompressor.decompress(_plain_frames(content, starts=self._chunks == 1))

    def decode(self, stored: bytes, size: int, *, filtered: bool = True) -> bytes:
        """Return the content of the next chunk, which must be exactly `size` bytes long. Other
        threads run meanwhile.

        Raises:
            FormatError: the bytes are damaged or decode to another size, or the chain is longer
                than `MAX_CHAIN_SIZE` or `MAX_CHAIN_CHUNKS`.
        """
        if self.broken:
            raise FormatError("a chunk of a chain before this one is damaged")
        _check_frames(stored, size, starts=not self._chunks)
        self._count(size)
        try:
            content = self._decompressor.decompress(stored)
            return _unfilter(content) if filtered else content
        except (lzma.LZMAError, EOFError) as err:
            raise FormatError(tr("a chunk of a chain is damaged: {err}", err=err)) from err

    def _count(self, size: int) -> None:
        """Count a chunk of so many bytes of content."""
        self._done += size
        self._chunks += 1
        if self._done > MAX_CHAIN_SIZE or self._chunks > MAX_CHAIN_CHUNKS:
            raise FormatError(
                tr(
                    "a chain is longer than {max_chain_size} bytes or {max_chain_chunks} chunks",
                    max_chain_size=MAX_CHAIN_SIZE,
                    max_chain_chunks=MAX_CHAIN_CHUNKS,
                )
            )


class ChainEncoder:
    """Encodes the chunks of a chain, in order. It takes some 200 MB of memory.

    The result depends on the version of liblzma, as that of zstd does on libzstd's.
    """

    def __init__(self) -> None:
        """Raises NeedsPackageError: liblzma is not installed."""
        self._library = _library()
        self._options = _Options()
        self._library.lzma_lzma_preset(ctypes.byref(self._options), _EXTREME_9)
        self._options.dict_size = MAX_CHAIN_SIZE
        self._filters = (_Filter * 2)(
            _Filter(lzma.FILTER_LZMA2, ctypes.addressof(self._options)), _Filter(_NO_FILTER, None)
        )
        self._stream = _Stream()
        self._begun = False
        self._check(self._library.lzma_raw_encoder(ctypes.byref(self._stream), self._filters))

    def encode(self, content: bytes, *, filtered: bool = True) -> bytes:
        """Return the stored bytes of the next chunk. Other threads run meanwhile."""
        if self._begun:
            self._reset_state()
        self._begun = True
        packed = _filter(content) if filtered else content
        stored = ctypes.create_string_buffer(len(packed) + (len(packed) >> 8) + 1024)
        stream = self._stream
        stream.next_in, stream.avail_in = packed, len(packed)
        stream.next_out, stream.avail_out = ctypes.addressof(stored), len(stored)
        code = self._library.lzma_code(ctypes.byref(stream), _SYNC_FLUSH)
        assert code == _STREAM_END, f"liblzma did not encode a chunk: {code}"
        return stored.raw[: len(stored) - stream.avail_out]

    def close(self) -> None:
        """Free the memory; an encoder that was closed is of no use."""
        self._library.lzma_end(ctypes.byref(self._stream))

    def _reset_state(self) -> None:
        """The encoder resets its state when a property changes: change one, and change it back."""
        for bits in (0, 2):
            self._options.pb = bits
            code = self._library.lzma_filters_update(ctypes.byref(self._stream), self._filters)
            self._check(code)

    def _check(self, code: int) -> None:
        if code:
            self.close()
            raise MemoryError(f"liblzma refuses to encode (error {code})")


def _check_frames(stored: bytes, size: int, *, starts: bool) -> None:
    """Check that bytes are whole LZMA2 chunks of `size` bytes of content in all, not many more than
    it takes.

    The first that is compressed must reset the state and set the properties. None may reset the
    dictionary, unless it is the first of a chain. So what is decoded after them depends on them by
    their content alone.

    Args:
        starts: the bytes start a chain.

    Raises:
        FormatError: they are not.
    """
    at = total = 0
    is_set = False
    for _ in range(size // _PLAIN_SIZE + _SPARE_FRAMES):
        if at >= len(stored):
            break
        control, low, packed = stored[at], *_SIZES.unpack(stored[at + 1 : at + 5].ljust(4, b"\0"))
        if (control == _PLAIN_FIRST or control >= _COMPRESSED_FIRST) and (at or not starts):
            raise FormatError("a chunk of a chain drops the content before it")
        is_set = is_set or control >= _WITH_PROPERTIES
        if control in (_PLAIN_FIRST, _PLAIN):
            total += low + 1
            at += 3 + low + 1
        elif control >= _COMPRESSED and is_set:
            total += ((control & 0x1F) << 16 | low) + 1
            at += 5 + (control >= _WITH_PROPERTIES) + packed + 1
        else:
            break
    if at != len(stored) or total != size:
        raise FormatError(
            tr("a chunk of a chain is damaged, or does not hold {size} bytes", size=size)
        )


def _filter(content: bytes) -> bytes:
    """Content through the x86 filter, which the library has only together with a compressor."""
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=_FILTER)
    return lzma.decompress(packed, lzma.FORMAT_RAW, filters=_FILTER[1:])


def _unfilter(filtered: bytes) -> bytes:
    """The content that `_filter` was given."""
    frames = _plain_frames(filtered, starts=True) + bytes([_END])
    return lzma.decompress(frames, lzma.FORMAT_RAW, filters=_FILTER)


def _plain_frames(data: bytes, *, starts: bool) -> bytes:
    """Data as LZMA2 chunks that are not compressed.

    Args:
        starts: the first of them resets the dictionary.
    """
    parts: list[bytes] = []
    for at in range(0, len(data), _PLAIN_SIZE):
        part = data[at : at + _PLAIN_SIZE]
        control = _PLAIN if at or not starts else _PLAIN_FIRST
        parts += (bytes([control]), (len(part) - 1).to_bytes(2, "big"), part)
    return b"".join(parts)


_NO_FILTER = (1 << 64) - 1


class _Options(ctypes.Structure):
    """lzma_options_lzma of lzma12.h."""

    _fields_ = (
        ("dict_size", ctypes.c_uint32),
        ("preset_dict", ctypes.c_void_p),
        ("preset_dict_size", ctypes.c_uint32),
        ("lc", ctypes.c_uint32),
        ("lp", ctypes.c_uint32),
        ("pb", ctypes.c_uint32),
        ("mode", ctypes.c_int),
        ("nice_len", ctypes.c_uint32),
        ("mf", ctypes.c_int),
        ("depth", ctypes.c_uint32),
        ("reserved_ints", ctypes.c_uint32 * 8),
        ("reserved_enums", ctypes.c_int * 4),
        ("reserved_pointers", ctypes.c_void_p * 2),
    )


class _Filter(ctypes.Structure):
    """lzma_filter of filter.h."""

    _fields_ = (("id", ctypes.c_uint64), ("options", ctypes.c_void_p))


class _Stream(ctypes.Structure):
    """lzma_stream of base.h; all zeros are LZMA_STREAM_INIT."""

    _fields_ = (
        ("next_in", ctypes.c_char_p),
        ("avail_in", ctypes.c_size_t),
        ("total_in", ctypes.c_uint64),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_size_t),
        ("total_out", ctypes.c_uint64),
        ("allocator", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
        ("reserved_pointers", ctypes.c_void_p * 4),
        ("seek_pos", ctypes.c_uint64),
        ("reserved_int", ctypes.c_uint64),
        ("reserved_sizes", ctypes.c_size_t * 2),
        ("reserved_enums", ctypes.c_int * 2),
    )


@cache
def _library() -> ctypes.CDLL:
    library = load_library(
        _LIBRARY,
        tr("to pack a hot layer needs the library liblzma"),
        "apt install liblzma5",
    )
    pointer = ctypes.c_void_p
    library.lzma_lzma_preset.argtypes = (pointer, ctypes.c_uint32)
    library.lzma_raw_encoder.argtypes = (pointer, pointer)
    library.lzma_filters_update.argtypes = (pointer, pointer)
    library.lzma_code.argtypes = (pointer, ctypes.c_int)
    library.lzma_end.argtypes = (pointer,)
    library.lzma_end.restype = None
    return library
