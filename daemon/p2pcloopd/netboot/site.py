"""What machines get over HTTP: a script, a kernel, a first root, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from p2pcloopd.http.server import File


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A file in memory (p2pcloopd.http.server.File)."""

    data: bytes
    etag: str
    media_type: str = "application/octet-stream"
    lasting: bool = False
    modified: int | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def here(self, offset: int, length: int) -> bool:
        return offset + length <= len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class NetbootSite:
    """Files by their names (p2pcloopd.http.server.Site)."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = {name: _Bytes(data, sha256(data).hexdigest()) for name, data in files.items()}

    def methods(self, path: str) -> tuple[str, ...]:
        """See `Site.methods`."""
        return ("GET", "HEAD") if path in self._files else ()

    async def find(self, path: str) -> File | None:
        """See `Site.find`."""
        return self._files.get(path)

    async def post(self, path: str) -> File | None:
        """See `Site.post`: nothing is dispatched here."""
        del path
        return None
