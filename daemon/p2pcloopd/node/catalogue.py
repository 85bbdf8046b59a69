"""What the torrents of a node belong to: images by their names, and their versions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError
from p2pcloop.frozen import dataclass
from p2pcloop.store.records import Records


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A version of an image.

    Attributes:
        torrents: of its layers, base first; none of a version that withdraws the image.
        sources: of its source layers.
        stored: bytes of all those in `used`, as the manifest tells them: their own metadata may not
            be here.
        manifest_torrent: the torrent of its manifest.
    """

    name: str
    version: int
    torrents: tuple[bytes, ...]
    sources: tuple[bytes, ...]
    stored: int
    manifest_torrent: bytes

    @property
    def used(self) -> tuple[bytes, ...]:
        """All that its readers may need."""
        return self.torrents + self.sources


@dataclass(frozen=True, slots=True)
class Part:
    """What a torrent is: a layer of a version, or its manifest."""

    image: str
    version: int
    kind: str


class Catalogue:
    """The images that a node knows, for those who look at it again and again.

    A manifest never changes, so it is read and verified once; what is told of it stays in memory.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._known: dict[bytes, ListedImage] = {}

    async def images(self) -> list[ListedImage]:
        """Each name whose newest manifest is here, in order."""
        names = self._records.names()
        await self._read((record.manifest_id, record.link.manifest_torrent) for record in names)
        found = (self._known.get(record.manifest_id) for record in names)
        return [image for image in found if image is not None]

    async def parts(
        self, torrents: Iterable[bytes], images: Iterable[ListedImage]
    ) -> dict[bytes, Part]:
        """What torrents belong to: the newest versions first, then older ones.

        Args:
            images: as `images` returned them.
        """
        found: dict[bytes, Part] = {}
        for image in images:
            _add(image, found)
        if all(torrent in found for torrent in torrents):
            return found
        older = [
            (ref.id, ref.torrent)
            for record in self._records.names()
            for _, ref in reversed(record.history)
            if ref.torrent is not None
        ]
        await self._read(older)
        for manifest_id, _ in older:
            if manifest_id in self._known:
                _add(self._known[manifest_id], found)
        return found

    async def _read(self, manifests: Iterable[tuple[bytes, bytes]]) -> None:
        """Read those that were not read yet; those that are not here may come later.

        Args:
            manifests: their ids and info hashes.
        """
        new = [each for each in manifests if each[0] not in self._known]
        if new:
            await trio.to_thread.run_sync(self._read_now, new)

    def _read_now(self, manifests: list[tuple[bytes, bytes]]) -> None:
        for manifest_id, torrent in manifests:
            with suppress(NotHereError, FormatError, MismatchError):
                manifest = self._records.manifest(manifest_id).manifest
                self._known[manifest_id] = ListedImage(
                    str(manifest.name),
                    manifest.version,
                    tuple(layer.torrent for layer in manifest.layers),
                    tuple(layer.torrent for layer in manifest.sources),
                    sum(each.index_length + each.pack_length for each in manifest.all_layers),
                    torrent,
                )


def _add(image: ListedImage, found: dict[bytes, Part]) -> None:
    found.setdefault(image.manifest_torrent, Part(image.name, image.version, "manifest"))
    layer = Part(image.name, image.version, "layer")
    for torrent in image.used:
        found.setdefault(torrent, layer)
