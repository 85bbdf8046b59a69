"""Opens the image of a manifest from the store of a node, where parts may still be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.index import MAX_RUNS, IndexHeader
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.content import StoredContent
from p2pcloop.image.layer import Layer, load_header
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE, MergedImage


class StoredImage:
    """The layers of a manifest on their way from their torrents into a merged image."""

    def __init__(self, manifest: Manifest, torrents: Path) -> None:
        """`torrents` is the store's folder with one directory for each info hash."""
        self._manifest = manifest
        self._contents = {
            layer.torrent: StoredContent(torrents / layer.torrent.hex(), layer)
            for layer in manifest.layers
        }
        self._headers: dict[bytes, IndexHeader] = {}
        self._layers: dict[bytes, Layer] = {}

    def accept(self, wanted: ByteRange, data: bytes) -> None:
        """Take what p2pcloopd answered to a missing range."""
        self._contents[wanted.torrent].accept(wanted, data)

    def open(self, *, cache_size: int = DEFAULT_CACHE_SIZE) -> MergedImage:
        """Return the merged image; what was read so far is kept until then. Opens once.

        Raises:
            Missing: headers or maps of layers are not here; all that can be asked for at once.
            MismatchError: a layer is not what the manifest says.
            FormatError: a header or map is what was signed and yet cannot be right.
        """
        self._for_each_layer(self._load_header)
        runs = sum(header.run_count for header in self._headers.values())
        if runs > MAX_RUNS:
            raise FormatError(
                f"the maps of the image's layers have {runs} runs in all, over the limit of "
                f"{MAX_RUNS}",
                hint="ask the publisher for an image of fewer layers",
            )
        self._for_each_layer(self._load_layer)
        layers = [self._layers[ref.layer_id] for ref in self._manifest.layers]
        if layers[-1].header.image_size != self._manifest.size:
            raise _mismatch("the image has another size than the manifest says")
        return MergedImage(layers, cache_size=cache_size)

    def close(self) -> None:
        """Close the files; for an image that was never opened (else close the merged image)."""
        for content in self._contents.values():
            content.close()

    def _for_each_layer(self, load: Callable[[LayerRef], None]) -> None:
        """Call `load` for all layers before what is missing is told, so that all is asked for."""
        missing: list[ByteRange] = []
        for ref in self._manifest.layers:
            try:
                load(ref)
            except Missing as absent:
                missing += absent.ranges
        if missing:
            raise Missing(missing)

    def _load_header(self, ref: LayerRef) -> None:
        if ref.layer_id in self._headers:
            return
        header = load_header(self._contents[ref.torrent], ref.layer_id, ref.header_length)
        if (header.index_length, header.pack_length) != (ref.index_length, ref.pack_length):
            raise _mismatch("a layer has other sizes than the manifest says")
        self._headers[ref.layer_id] = header

    def _load_layer(self, ref: LayerRef) -> None:
        if ref.layer_id not in self._layers:
            content = self._contents[ref.torrent]
            self._layers[ref.layer_id] = Layer(content, self._headers[ref.layer_id])


def _mismatch(message: str) -> MismatchError:
    return MismatchError(message, hint="ask the publisher to publish the image again")
