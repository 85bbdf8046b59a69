"""Making the delta of a target over an image that p2pcloopd knows, and having it served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from p2pcloop.client.open_stored import Opened, open_stored
from p2pcloop.client.progress import progress_bar, waiting_for
from p2pcloop.client.publisher import Content, Publisher
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import UsageError, storage_error
from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.formats.index import MAX_RUNS, open_index
from p2pcloop.formats.manifest import MAX_SOURCES, LayerRef, Manifest
from p2pcloop.formats.seal import Seal
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.known import KnownChunks
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.build import Progress
from p2pcloop.making.changes import Base, Changes, Target, find_changes
from p2pcloop.making.delta import (
    MIN_REFERRED,
    Delta,
    Find,
    Reuse,
    nothing_moved,
    pack_delta,
)
from p2pcloop.making.encoding import DELTA, WHOLE, Shape
from p2pcloop.making.moved import LivePlaces, MovedBlocks
from p2pcloop.making.pack import begin_layer, finish_layer
from p2pcloop.making.targets import DeviceTarget, upper_stretches
from p2pcloop.store.have import is_whole
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class Made:
    """An image with the delta of a target on top.

    Attributes:
        content: its layers and sources; they include the delta, if there is one.
        changes: the blocks that differ.
        delta: the new layer, or None if nothing changed.
    """

    content: Content
    changes: Changes
    delta: Delta | None


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes deltas for one publisher.

    Attributes:
        publisher: signs and has the layer served.
        secret: of a private image.
        quiet: show no progress.
    """

    publisher: Publisher
    secret: bytes | None
    quiet: bool

    def over(
        self,
        below: Opened | None,
        target: Target,
        *,
        found_in: Opened | None = None,
        find: Find = nothing_moved,
        shape: Shape | None = None,
        search_from: int = 0,
        ask: bool = True,
        changes: Changes | None = None,
    ) -> Made:
        """Make and serve the delta of `target` over an image, or over nothing.

        Args:
            below: the image below the delta; None for a whole image in one layer, which refers to
                no other layer.
            target: the device that image and delta show together.
            found_in: the image in whose chunks `find` finds blocks; by default `below`, all of
                which is searched.
            find: see `making.delta.Find`.
            shape: of the chunks; by default `DELTA`, and `WHOLE` over nothing.
            search_from: changed blocks from which on `below` is searched for them.
            ask: fetch content of `below` that is not here, to compare with it. Else what lies over
                it counts as changed.
            changes: what `compare` found already.

        Raises:
            UsageError: the image would have too many runs.
            P2pcloopError: see `find_changes`, `pack_delta` and the operations of p2pcloopd.
        """
        if changes is None:
            changes = self.compare(below, target, ask=ask)
        if below is None:
            return self._pack(None, changes, target, None, nothing_moved, shape or WHOLE)
        content = Content.of(below.ref.signed.manifest)
        if not changes and target.size == content.size:
            return Made(content, changes, None)
        if found_in is None:
            found_in = below
            if changes.blocks >= search_from:
                with waiting_for("what is in the base already"):
                    find = MovedBlocks(below.image, changes).find
        return self._pack(below, changes, target, found_in, find, shape or DELTA)

    def compare(self, below: Opened | None, target: Target, *, ask: bool = True) -> Changes:
        """Find the blocks of `target` that differ from an image; arguments as for `over`."""
        supply = below.try_supply if below is not None and ask else no_peer
        base = Base(None if below is None else below.image, supply)
        with progress_bar("comparing", quiet=self.quiet) as progress:
            progress(0, target.size)
            return find_changes(target, base, progress)

    def _pack(
        self,
        below: Opened | None,
        changes: Changes,
        target: Target,
        found_in: Opened | None,
        find: Find,
        shape: Shape,
    ) -> Made:
        """Pack changes and serve the layer."""
        manifest = None if below is None else below.ref.signed.manifest
        others = _Others(self.publisher.home, manifest, self.secret)
        reuse = Reuse()
        if found_in is not None:
            in_a_row = MIN_REFERRED if found_in is below else 1
            reuse = others.reuse(found_in.image, find, in_a_row)
        pack = partial(
            pack_delta,
            changes,
            target,
            reuse=reuse,
            seal=None if self.secret is None else Seal.new(self.secret),
            shape=shape,
        )
        with closing(others), self.publisher.home.staging() as staging:
            with progress_bar("packing", quiet=self.quiet) as progress:
                progress(0, changes.blocks * BLOCK_SIZE)
                delta = _write(staging, pack, progress)
            header = open_index(delta.index)
            if below is not None:
                check_runs(below.image, header.run_count)
            finish_layer(staging, delta.index)
            layer = self.publisher.serve_layer(staging, header)
        layers = () if manifest is None else manifest.layers
        sources = others.sources(found_in, delta.sources)
        return Made(Content(target.size, (*layers, layer), sources), changes, delta)


def delta_facts(delta: Delta | None) -> dict[str, Any]:
    """What commands tell of a delta (docs/commands.md); None: nothing changed."""
    if delta is None:
        return {"stored": 0}
    return {
        "stored": delta.pack_length,
        "index": len(delta.index),
        "stored_blocks": delta.stored_blocks,
        "repeated_blocks": delta.repeated_blocks,
        "referred_blocks": delta.referred_blocks,
        "zero_blocks": delta.zero_blocks,
    }


def squash(
    target: StoredRef, publisher: Publisher, stack: ExitStack, *, whole: bool, quiet: bool
) -> Made:
    """Make and serve one layer in place of the upper layers of an image, which must be here.

    Args:
        stack: closes the images that this opens.
        whole: replace all layers, not only the upper ones.
        quiet: show no progress.

    Raises:
        P2pcloopError: see `Maker.over`.
    """
    maker = Maker(publisher, target.secret, quiet)
    opened = open_stored(target, publisher.home, stack)
    image = opened.image
    device = ImageDevice(image)
    if whole:
        everything = [(0, image.size // BLOCK_SIZE)]
        return maker.over(None, DeviceTarget(device, opened.supply, everything))
    base = open_stored(_lowest(target, opened), publisher.home, stack)
    shown = upper_stretches(image, 1, image.size)
    made_of = LivePlaces(image, 1)
    return maker.over(
        base,
        DeviceTarget(device, opened.supply, shown),
        found_in=opened,
        find=made_of.find,
        shape=None if target.signed.manifest.machine is None else WHOLE,
    )


def _lowest(ref: StoredRef, opened: Opened) -> StoredRef:
    """The lowest layer alone, as an image."""
    manifest, header = ref.signed.manifest, opened.image.layers[0].header
    others = [layer for layer in manifest.all_layers[1:] if layer.layer_id in header.sources]
    alone: Manifest = replace(
        manifest, size=header.image_size, layers=manifest.layers[:1], sources=tuple(others)
    )
    return replace(ref, signed=replace(ref.signed, manifest=alone))


def _write(
    staging: Path, pack: Callable[[BinaryIO, Callable[..., None]], Delta], progress: Progress
) -> Delta:
    try:
        with (begin_layer(staging) / "pack").open("wb") as file:
            return pack(file, progress)
    except OSError as err:
        raise storage_error(tr("cannot write in {staging}", staging=staging), err) from err


class _Others:
    """Finds whole chunks in layers of other images; readers can get them from those layers.

    Attributes:
        stack: the ids of the layers that the image names already.
        found: the layers that were found, by their ids.
    """

    def __init__(self, home: Home, manifest: Manifest | None, secret: bytes | None) -> None:
        self.found: dict[bytes, LayerRef] = {}
        self._manifest = manifest
        self._home = home
        self._private = secret is not None
        self.stack = () if manifest is None else tuple(ref.layer_id for ref in manifest.all_layers)
        self._known = KnownChunks(home, secrets=[] if secret is None else [secret])

    def find(self, chunk_id: bytes) -> tuple[bytes, Chunk] | None:
        """See `KnownChunk`.

        A private image refers to its own layers only: anyone can read its manifest, and other
        layers in it would show which images it resembles.
        """
        for known in self._known.find(chunk_id):
            layer_id = known.ref.layer_id
            usable = layer_id in self.stack or (not self._private and self._is_whole(known.ref))
            if usable and not self._known.contradicts(known):
                self.found[layer_id] = known.ref
                return layer_id, known.chunk
        return None

    def reuse(self, image: MergedImage, find: Find, in_a_row: int) -> Reuse:
        """What a delta refers to in layers of an image, and in others; see `Reuse`."""
        named = 0 if self._manifest is None else len(self._manifest.sources)
        return Reuse(
            image,
            find,
            in_a_row=in_a_row,
            known=self.find,
            layers=self.stack,
            more_sources=MAX_SOURCES - named,
        )

    def sources(self, found_in: Opened | None, used: Iterable[bytes]) -> tuple[LayerRef, ...]:
        """The layers that the new version names beside its own.

        Args:
            found_in: the image in which blocks were found.
            used: ids of the layers in which the new one has chunks.
        """
        manifest = self._manifest
        known = () if found_in is None else found_in.ref.signed.manifest.all_layers
        refs = {ref.layer_id: ref for ref in (*known, *self.found.values())}
        kept = () if manifest is None else (ref.layer_id for ref in manifest.sources)
        own = set() if manifest is None else {ref.layer_id for ref in manifest.layers}
        return tuple(refs[key] for key in dict.fromkeys([*kept, *used]) if key not in own)

    def close(self) -> None:
        self._known.close()

    def _is_whole(self, ref: LayerRef) -> bool:
        """Whether all of a layer is here, so that readers can fetch it from this node."""
        return is_whole(self._home.torrents / ref.torrent.hex() / "have")


def check_runs(image: MergedImage, more: int) -> None:
    """Refuse a layer of `more` runs if the maps of the image would then have too many in all.

    Raises:
        UsageError: they would have.
    """
    runs = more + sum(layer.header.run_count for layer in image.layers)
    if runs > MAX_RUNS:
        raise UsageError(
            tr(
                "the maps of the image would have {runs} runs in all, over the limit of {max_runs}",
                runs=runs,
                max_runs=MAX_RUNS,
            ),
            hint="join its layers first: `p2pcloop squash`",
        )


def no_peer(_missing: Missing) -> bool:
    """Supply nothing: what is not here counts as changed (`making.changes.Base`)."""
    return False
