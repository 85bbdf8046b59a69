"""LZO1X, by Debian's liblzo2 (https://www.oberhumer.com/opensource/lzo/): raw blocks, no container.

The library is called through ctypes. The Python bindings have no wheels and need a compiler on the
user's machine. The port to Rust has wheels, but no limit for its output, unlike
`lzo1x_decompress_safe`. ctypes lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
from functools import cache

from p2pcloop.errors import FormatError
from p2pcloop.shared_library import load_library
from p2pcloop.words import tr

_LIBRARY = "liblzo2.so.2"
_WORK_SIZE = 14 * 16384 * ctypes.sizeof(ctypes.c_short)
"""LZO1X_999_MEM_COMPRESS of lzo1x.h."""


def decode_lzo(stored: bytes, size: int) -> bytes:
    """Return the content of one LZO1X block that holds exactly `size` bytes; never makes more.

    Raises:
        FormatError: damaged, cut off, of another size, or followed by something.
        NeedsPackageError: liblzo2 is not installed.
    """
    content = decode_lzo_up_to(stored, size)
    if len(content) != size:
        raise FormatError(
            tr("an LZO block holds {what} bytes, not {size}", what=len(content), size=size)
        )
    return content


def decode_lzo_up_to(stored: bytes, most: int) -> bytes:
    """Return the content of one LZO1X block that holds at most `most` bytes; never makes more.

    Raises:
        FormatError: damaged, cut off, longer, or followed by something.
        NeedsPackageError: liblzo2 is not installed.
    """
    content = ctypes.create_string_buffer(max(most, 1))
    length = ctypes.c_size_t(most)
    code = _library().lzo1x_decompress_safe(
        stored, len(stored), content, ctypes.byref(length), None
    )
    if code:
        raise FormatError(
            tr(
                "an LZO block is damaged or longer than {size} bytes (LZO error {code})",
                size=most,
                code=code,
            )
        )
    return content.raw[: length.value]


def encode_lzo(content: bytes) -> bytes:
    """Return content as one LZO1X block, as small as the library makes it (lzo1x_999).

    Raises:
        NeedsPackageError: liblzo2 is not installed.
    """
    stored = ctypes.create_string_buffer(_bound(len(content)))
    length = ctypes.c_size_t(len(stored))
    work = ctypes.create_string_buffer(_WORK_SIZE)
    code = _library().lzo1x_999_compress(content, len(content), stored, ctypes.byref(length), work)
    assert code == 0, "lzo1x_999_compress knows no error"
    return stored.raw[: length.value]


def _bound(size: int) -> int:
    """Bytes that LZO makes of `size` bytes at most (LZO.FAQ)."""
    return size + size // 16 + 64 + 3


@cache
def _library() -> ctypes.CDLL:
    library = load_library(
        _LIBRARY,
        tr("blocks compressed with LZO need the library liblzo2"),
        "apt install liblzo2-2",
    )
    lengths = ctypes.POINTER(ctypes.c_size_t)
    for function in (library.lzo1x_decompress_safe, library.lzo1x_999_compress):
        function.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_char_p,
            lengths,
            ctypes.c_void_p,
        ]
        function.restype = ctypes.c_int
    return library
