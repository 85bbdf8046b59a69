"""Parts of a layer that a reader was given before all of their pieces were here.

`torrents/<info hash>/parts/<offset>-<length>`: bytes of the torrent's content, as a mirror gave
them. Nothing vouches for them here: who reads them compares them with their SHA-256. So they are
written without ceremony, and what a crash tears is asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 64 << 20
"""Of all parts of a torrent together; what comes later is not kept."""

PARTS = "parts"
"""What the directory is called."""

Range = tuple[int, int]
"""Offset and length, in bytes of the torrent's content."""

_NAME = re.compile(r"([0-9]{1,20})-([1-9][0-9]{0,19})")


class Parts:
    """The parts of one torrent. The disk is only asked a favour: its errors lose a part.

    Whoever made this object is the only one who changes them.

    Attributes:
        size: bytes of all of them.
    """

    def __init__(self, torrent: Path) -> None:
        """`torrent` is the torrent's directory in the store."""
        self._directory = torrent / PARTS
        self._ranges = self._list()
        self.size = sum(length for _, length in self._ranges)

    @property
    def ranges(self) -> list[Range]:
        """The parts that were kept, in order."""
        return sorted(self._ranges)

    def has(self, offset: int, length: int) -> bool:
        """Whether just this range was kept."""
        return (offset, length) in self._ranges

    def read(self, offset: int, length: int) -> bytes | None:
        """The part of just this range, if it was kept."""
        with suppress(OSError):
            data = self._path(offset, length).read_bytes()
            if len(data) == length:
                return data
        return None

    def keep(self, parts: Mapping[Range, bytes]) -> None:
        """Keep parts, as many as there is room for."""
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for (offset, length), data in parts.items():
                if (offset, length) not in self._ranges and self.size + length <= MAX_BYTES:
                    self._path(offset, length).write_bytes(data)
                    self._ranges.add((offset, length))
                    self.size += length

    def drop(self, offset: int, length: int) -> None:
        """Forget a part; the directory goes with the last."""
        if (offset, length) in self._ranges:
            self._ranges.remove((offset, length))
            self.size -= length
        with suppress(OSError):
            self._path(offset, length).unlink()
            self._directory.rmdir()

    def clear(self) -> None:
        """Forget all parts."""
        for part in self.ranges:
            self.drop(*part)

    def _list(self) -> set[Range]:
        with suppress(OSError):
            found = [_NAME.fullmatch(path.name) for path in self._directory.iterdir()]
            return {(int(name[1]), int(name[2])) for name in found if name}
        return set()

    def _path(self, offset: int, length: int) -> Path:
        return self._directory / f"{offset}-{length}"
