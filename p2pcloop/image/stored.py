"""Opening the image of a manifest from the store of a node; parts may still be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from p2pcloop.errors import FormatError, MismatchError, UsageError
from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.formats.index import MAX_HEADER_SIZE, MAX_RUNS, IndexHeader
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.formats.seal import Seal, check_secret
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.chain import OpenChains
from p2pcloop.image.content import StoredContent
from p2pcloop.image.known import KnownChunks
from p2pcloop.image.layer import Layer, Pack, PageCache, load_header
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE, MergedImage
from p2pcloop.store.home import Home
from p2pcloop.store.kept import KeptChunks
from p2pcloop.store.unpacked_kernels import PageLike, pages_like
from p2pcloop.words import tr

MAX_HEADERS_SIZE = 2 * MAX_HEADER_SIZE
"""Bytes of the index headers of all layers together: hashes of pages of 2^25 chunks."""


class StoredImage:
    """The layers of a manifest on their way from their torrents into a merged image."""

    def __init__(
        self,
        manifest: Manifest,
        torrents: Path,
        secret: bytes | None = None,
        *,
        known: KnownChunks | None = None,
        kept: KeptChunks | None = None,
        kernels: Sequence[PageLike] = (),
    ) -> None:
        """Nothing is read yet.

        Args:
            manifest: whose signature was verified.
            torrents: the store's folder with one directory for each info hash.
            secret: of a private image, as its link has it.
            known: searched for each chunk that is missing, before p2pcloopd is asked.
            kept: decoded chunks of an earlier boot; closed with the image.
            kernels: of this machine, for a state.

        Raises:
            UsageError: the image is private and there is no secret.
            MismatchError: it is the secret of another image.
        """
        check_secret(manifest.key_check, secret)
        self._manifest = manifest
        self._secret = secret if manifest.private else None
        self._known = known
        self._kept = kept
        self._kernels = kernels
        self._contents = {
            layer.torrent: StoredContent(torrents / layer.torrent.hex(), layer)
            for layer in manifest.all_layers
        }
        self._refs = {layer.layer_id: layer for layer in manifest.all_layers}
        self._headers: dict[bytes, IndexHeader] = {}
        self._layers: dict[bytes, Layer] = {}
        self._pages = PageCache()
        self._chains = OpenChains()

    @classmethod
    def of_home(
        cls,
        manifest: Manifest,
        home: Home,
        secret: bytes | None = None,
        *,
        kept: KeptChunks | None = None,
    ) -> Self:
        """From a home's store; chunks that other images there have are read from those, and of a
        state, what this machine's kernels have.

        Raises:
            UsageError, MismatchError: as for the constructor.
        """
        known = KnownChunks(home, secrets=[] if secret is None else [secret])
        kernels = [] if manifest.machine is None else pages_like(manifest.machine)
        return cls(manifest, home.torrents, secret, known=known, kept=kept, kernels=kernels)

    def accept(self, wanted: ByteRange, data: bytes) -> None:
        """Take p2pcloopd's answer to a missing range."""
        self._contents[wanted.torrent].accept(wanted, data)

    def open(
        self, *, cache_size: int = DEFAULT_CACHE_SIZE, spill: Path | None = None
    ) -> MergedImage:
        """Return the merged image. To be called until it does; headers read so far are kept.

        Args:
            cache_size, spill: see `MergedImage`.

        Raises:
            Missing: headers or maps of layers are not here; names all that can be fetched at once.
            MismatchError: a layer is not what the manifest says, or sealed under another key.
            FormatError: a header or map is what was signed and yet cannot be right.
        """
        # Only sources of sealed layers need their headers: these say how chunks are sealed.
        wanted = self._manifest.all_layers if self._manifest.private else self._manifest.layers
        try:
            check_headers(wanted)
        except UsageError as err:
            raise _too_large(err.message) from err
        _all_at_once(self._load_header, wanted)
        runs = sum(self._headers[ref.layer_id].run_count for ref in self._manifest.layers)
        if runs > MAX_RUNS:
            raise _too_large(
                tr(
                    "the maps of the image's layers have {runs} runs in all, over the limit of"
                    " {max_runs}",
                    runs=runs,
                    max_runs=MAX_RUNS,
                )
            )
        _all_at_once(self._load_layer, self._manifest.layers)
        layers = [self._layers[ref.layer_id] for ref in self._manifest.layers]
        if layers[-1].header.image_size != self._manifest.size:
            raise _mismatch(tr("the image has another size than the manifest says"))
        return MergedImage(
            layers, cache_size=cache_size, spill=spill, also_close=self._close_elsewhere
        )

    def is_whole(self) -> bool:
        """Whether all bytes of all layers are here."""
        return all(content.is_whole() for content in self._contents.values())

    def used(self) -> dict[bytes, bytes]:
        """The pieces of each torrent that were read so far: see `StoredContent.used`."""
        elsewhere = {} if self._known is None else self._known.used()
        return elsewhere | {torrent: content.used() for torrent, content in self._contents.items()}

    def close(self) -> None:
        """Close the files; for an image that was never opened (else close the merged image)."""
        for content in self._contents.values():
            content.close()
        self._close_elsewhere()

    def _close_elsewhere(self) -> None:
        for each in (self._known, self._kept):
            if each is not None:
                each.close()

    def _load_header(self, ref: LayerRef) -> None:
        if ref.layer_id in self._headers:
            return
        header = load_header(self._contents[ref.torrent], ref.layer_id, ref.header_length)
        if (header.index_length, header.pack_length) != (ref.index_length, ref.pack_length):
            raise _mismatch(tr("a layer has other sizes than the manifest says"))
        self._headers[ref.layer_id] = header

    def _load_layer(self, ref: LayerRef) -> None:
        if ref.layer_id in self._layers:
            return
        header = self._headers[ref.layer_id]
        seal = self._seal(ref)
        sources = [self._pack(source) for source in header.sources]
        if seal is None and any(pack.seal is not None for pack in sources):
            raise FormatError(
                "a layer that is not sealed refers to chunks of a sealed one",
                hint="ask the publisher to publish the image again",
            )
        self._layers[ref.layer_id] = Layer(
            self._contents[ref.torrent],
            header,
            seal=seal,
            sources=sources,
            elsewhere=self._elsewhere,
            pages=self._pages,
            chains=self._chains,
            kept=self._kept,
            kernels=self._kernels,
        )

    def _elsewhere(self, chunk: Chunk) -> bytes | None:
        if self._kept is not None and (data := self._kept.read(chunk.id, chunk.size)) is not None:
            return data
        return None if self._known is None else self._known.read(chunk)

    def _pack(self, layer_id: bytes) -> Pack:
        """The pack of a layer of the stack or of a source."""
        ref = self._refs.get(layer_id)
        if ref is None:
            raise FormatError(
                "a layer refers to chunks of another one that the manifest does not name",
                hint="ask the publisher to publish the image again",
            )
        content = self._contents[ref.torrent]
        return Pack(content, ref.index_length, ref.pack_length, self._seal(ref))

    def _seal(self, ref: LayerRef) -> Seal | None:
        """The seal of a layer; None in an image that is not private."""
        header = self._headers.get(ref.layer_id)
        if header is None or header.salt is None:
            return None
        if self._secret is None:
            raise FormatError(
                "a layer is sealed, and the manifest does not say that the image is private",
                hint="ask the publisher to publish the image again",
            )
        return Seal(self._secret, header.salt)


def _all_at_once(load: Callable[[LayerRef], None], refs: Iterable[LayerRef]) -> None:
    """Call `load` for all layers, then raise one `Missing` with the ranges of all of them."""
    missing: list[ByteRange] = []
    for ref in refs:
        try:
            load(ref)
        except Missing as absent:
            missing += absent.ranges
    if missing:
        raise Missing(missing)


def check_headers(wanted: Iterable[LayerRef]) -> None:
    """Refuse layers whose headers no reader loads.

    Args:
        wanted: the layers of an image; of a private one its sources, too.

    Raises:
        UsageError: the headers are too large together.
    """
    size = sum(ref.header_length for ref in wanted)
    if size > MAX_HEADERS_SIZE:
        raise UsageError(
            tr(
                "the headers of the image's layers have {size} bytes in all, over the limit of"
                " {max_headers_size}",
                size=size,
                max_headers_size=MAX_HEADERS_SIZE,
            ),
            hint="join the layers first: `p2pcloop squash`",
        )


def _too_large(what: str) -> FormatError:
    return FormatError(what, hint="ask the publisher for an image of fewer layers")


def _mismatch(message: str) -> MismatchError:
    return MismatchError(message, hint="ask the publisher to publish the image again")
