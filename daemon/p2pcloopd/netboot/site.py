"""What machines get over HTTP: a script, a kernel, a first root, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from p2pcloopd.http.server import BytesFile, File


class NetbootSite:
    """Files by their names (p2pcloopd.http.server.Site)."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = {
            name: BytesFile(data, sha256(data).hexdigest()) for name, data in files.items()
        }

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
