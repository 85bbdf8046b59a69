"""Finding name records: every source is asked at once, and the newest valid record wins.

Where a record came from does not matter (docs/formats/record.md): it is signed by the key in its
name. So sources hand over bytes as they came, and they are checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pcloop.formats.name import Name


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record as a source gave it, and where what it points to may be had.

    Attributes:
        data: the signed record's bytes, not checked.
        mirrors: base URLs (ending in "/") or absolute directories (ending in "/") that may have
            its manifest and its layers.
        peers: (host, port) of BitTorrent peers that may have them.
    """

    data: bytes
    mirrors: tuple[str, ...] = ()
    peers: tuple[tuple[str, int], ...] = ()


class RecordSource(Protocol):
    """A place where records of names lie: a mirror, the LAN, the DHT."""

    @property
    def name(self) -> str:
        """What it is called in messages: `https://host/dir/`, `the DHT`, `the LAN`."""

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        """All records of a name that it has; none is an answer, too. May take as long as it likes:
        whoever asks bounds it by cancelling.

        Raises:
            P2pcloopError: it cannot be asked, or answered nonsense; other sources go on.
        """


class Mirror(Protocol):
    """One copy of the static layout (docs/formats/mirror.md): a URL or a directory.

    Both methods are bounded in bytes and time, and check nothing but sizes.
    """

    @property
    def base(self) -> str:
        """Its URL, or its absolute directory; ends in "/"."""

    async def record(self, name: Name) -> bytes:
        """The signed record at `@<key>/<label>`.

        Raises:
            NotHereError: it has none.
            P2pcloopError: it cannot be asked, or answered nonsense.
        """

    async def manifest(self, manifest_id: bytes) -> bytes:
        """The signed manifest at `manifests/<id hex>`; errors as of `record`."""


class MirrorSource:
    """A mirror as a source of records."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    @property
    def name(self) -> str:
        return self._mirror.base

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        return [FoundRecord(await self._mirror.record(name), mirrors=(self._mirror.base,))]
