"""Sizes that all formats share, in bytes, and sizes as text for people."""

from __future__ import annotations

import re

BLOCK_SIZE = 4096
"""The unit of copy-on-write and of the maps."""

SECTOR_SIZE = 512
"""The smallest unit that a block protocol may address."""

MAX_CHUNK_SIZE = 1 << 20
"""The most uncompressed bytes that one chunk may hold."""

MAX_IMAGE_SIZE = 1 << 44
"""16 TiB: block numbers fit in 32 bits."""


def format_size(size: float) -> str:
    """A number of bytes as text, in units of 1000 as for lines and disks: `82.6 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """A time of whole seconds as text, `1:02:03`; what is left of a second is dropped."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def parse_size(text: str) -> int:
    """Read a number of bytes as users write it: `512M`, `1G`, `4096`; K, M, G and T are of 1024.

    Raises:
        ValueError: it is not of that form.
    """
    match = re.fullmatch(r"([0-9]{1,9})([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a size like 512M or 1G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")
