"""Parts of a layer that were read before the metadata of its torrent was here.

`torrents/<info hash>/parts/<offset>-<length>`: bytes of the torrent's content, as a mirror gave
them. Nothing vouches for them here: who reads them compares them with their SHA-256. So they are
written without ceremony, and what a crash tears is asked for again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 8 << 20
"""Of all parts of a torrent together; what comes later is not kept."""

PARTS = "parts"
"""What the directory is called."""

_NAME = re.compile(r"([0-9]{1,20})-([1-9][0-9]{0,19})")


class Parts:
    """The parts of one torrent. The disk is only asked a favour: its errors lose a part."""

    def __init__(self, torrent: Path) -> None:
        """`torrent` is the torrent's directory in the store."""
        self._directory = torrent / PARTS

    def ranges(self) -> list[tuple[int, int]]:
        """Offset and length of each part that was kept, in order."""
        with suppress(OSError):
            found = [_NAME.fullmatch(path.name) for path in self._directory.iterdir()]
            return sorted((int(name[1]), int(name[2])) for name in found if name)
        return []

    def read(self, offset: int, length: int) -> bytes | None:
        """The part of just this range, if it was kept."""
        with suppress(OSError):
            data = self._path(offset, length).read_bytes()
            if len(data) == length:
                return data
        return None

    def keep(self, offset: int, data: bytes) -> None:
        """Keep a part, if there is room."""
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            kept = sum(path.stat().st_size for path in self._directory.iterdir())
            if kept + len(data) <= MAX_BYTES:
                self._path(offset, len(data)).write_bytes(data)

    def drop(self, offset: int, length: int) -> None:
        """Forget a part; the directory goes with the last."""
        with suppress(OSError):
            self._path(offset, length).unlink()
            self._directory.rmdir()

    def _path(self, offset: int, length: int) -> Path:
        return self._directory / f"{offset}-{length}"
