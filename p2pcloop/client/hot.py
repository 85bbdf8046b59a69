"""Making the hot layer of an image that p2pcloopd knows, and having it served."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pcloop.client.delta import check_runs
from p2pcloop.client.open_stored import Opened, open_stored
from p2pcloop.client.profiles import Subject
from p2pcloop.client.progress import progress_bar, waiting_for
from p2pcloop.client.publisher import Content, Publisher, newest_of, reference
from p2pcloop.client.seed import seed_content
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify
from p2pcloop.errors import NotHereError, UsageError, storage_error
from p2pcloop.formats.index import open_index
from p2pcloop.formats.manifest import LayerRef, ManifestRef
from p2pcloop.formats.profile import Profile, unpack_touches
from p2pcloop.formats.seal import Seal
from p2pcloop.frozen import dataclass
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.hot import HotLayer, adds_nothing, has_chunks, pack_hot
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.pack import begin_layer, finish_layer
from p2pcloop.making.targets import DeviceTarget
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import ancestors, fit_profile
from p2pcloop.store.sources import remember_source
from p2pcloop.store.unpacked_kernels import pages_like
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class Optimized:
    """An image with a hot layer on top.

    Attributes:
        content: of the next version.
        parent: the version that the next one is made from.
        layer: the hot layer.
        replaced: whether it takes the place of an older hot layer.
    """

    content: Content
    parent: ManifestRef
    layer: HotLayer
    replaced: bool

    def facts(self) -> dict[str, Any]:
        """Facts for the output of `optimize` (docs/commands.md)."""
        return {
            "size": self.content.disk_length,
            "layers": len(self.content.layers),
            "stored": self.layer.pack_length,
            "index": len(self.layer.index),
            "stored_blocks": self.layer.stored_blocks,
            "zero_blocks": self.layer.zero_blocks,
            "replaced": self.replaced,
        }


@dataclass(frozen=True, slots=True)
class HotMaker:
    """Makes hot layers for one publisher.

    Attributes:
        publisher: signs and has the layer served.
        quiet: show no progress.
    """

    publisher: Publisher
    quiet: bool

    def optimize(self, opened: Opened, touches: bytes) -> Optimized:
        """Pack the blocks of a profile and serve them as a layer on top of an image.

        If the top layer only repeats the layers below it, as a hot layer does, the new layer
        replaces it. If a layer of the image has the same chunks already, that layer stays, and no
        new one is served.

        Args:
            opened: the image; this waits for blocks that are missing.
            touches: the packed touches of a boot.

        Raises:
            UsageError: nothing but zeros is touched, or the image would have too many runs.
            P2pcloopError: a block cannot be fetched, or p2pcloopd could not serve the layer.
        """
        manifest = opened.ref.signed.manifest
        lower = self.without_top(opened)
        below = lower or Content.of(manifest)
        with self.publisher.home.staging() as staging:
            hot = self._pack(opened, touches, staging)
            with waiting_for("a comparison with the layers that are there"):
                same = _find_same(opened, hot)
            if same is None:
                header = open_index(hot.index)
                check_runs(opened.image, header.run_count)
                finish_layer(staging, hot.index)
                same = self.publisher.serve_layer(staging, header)
        layers = below.layers if same in below.layers else (*below.layers, same)
        # A manifest is public: it names the blocks that a boot of a private image reads only if
        # an earlier version did.
        told = touches if not manifest.private or manifest.profile else b""
        parent = manifest.parent if lower is not None else None
        return Optimized(
            replace(below, layers=layers, profile=told),
            parent or reference(opened.ref),
            hot,
            lower is not None,
        )

    def without_top(self, opened: Opened) -> Content | None:
        """An image without its top layer, if that only repeats the layers below; else None."""
        manifest, image = opened.ref.signed.manifest, opened.image
        if len(image.layers) == 1 or image.layers[-2].header.image_size != image.size:
            return None
        lower = replace(manifest, layers=manifest.layers[:-1])
        signed = replace(opened.ref.signed, manifest=lower)
        with ExitStack() as stack:
            below = open_stored(replace(opened.ref, signed=signed), self.publisher.home, stack)
            with waiting_for("a comparison with the layers below"):
                nothing = adds_nothing(image, below.image, _target(opened), _target(below))
        return Content.of(lower) if nothing else None

    def known_profile(self, file: ImageFile) -> Profile:
        """The profile that boots of a file recorded, or boots of the newest version.

        A raw image file has another id than the layer that is packed of it, and so another profile.

        Raises:
            NotHereError: none is known, so that nothing need be seeded.
        """
        home = self.publisher.home
        with ExitStack() as stack:
            try:
                return Subject.open(file, home, stack, quiet=self.quiet).find(home).profile
            except (NotHereError, UsageError):  # or a cloop that has to be repacked
                if self.publisher.image is None:
                    raise
        return Subject.of_stored(self.publisher.image).find(home).profile

    def seed(self, file: ImageFile, *, public: bool, as_new_version: bool) -> StoredRef:
        """Publish an image file; return the newest version.

        Nothing is published if that has this content, optimized or not; nor if an older one has it,
        unless the user says `as_new_version`.

        Errors as of `seed_content` and `Publisher.release`.
        """
        publisher, newest = self.publisher, self.publisher.image
        content, _, kept = seed_content(
            file, publisher, quiet=self.quiet, as_new_version=as_new_version
        )
        if newest is None or not self._stands_on(newest, content):
            if kept is not None:
                kept.tell()
                newest = kept.ref
            else:
                publisher.release(content, public=public)
                newest = newest_of(publisher.client, publisher.name)
                assert newest is not None, "it was published just now"
        remember_source(publisher.home, publisher.name, file.source)
        return newest

    def _stands_on(self, newest: StoredRef, content: Content) -> bool:
        """Whether a version has exactly that content, with or without a hot layer."""
        layers = newest.signed.manifest.layers
        if layers[:-1] != content.layers:
            return layers == content.layers
        with ExitStack() as stack:
            return self.without_top(open_stored(newest, self.publisher.home, stack)) is not None

    def _pack(self, opened: Opened, touches: bytes, staging: Path) -> HotLayer:
        secret = opened.ref.secret if opened.ref.signed.manifest.private else None
        found = unpack_touches(touches, blocks=opened.image.size // BLOCK_SIZE)
        seal = None if secret is None else Seal.new(secret)
        machine = opened.ref.signed.manifest.machine
        kernels = [] if machine is None else pages_like(machine)
        with progress_bar("packing", quiet=self.quiet) as progress:
            progress(0, sum(touch.count for touch in found) * BLOCK_SIZE)
            try:
                with (begin_layer(staging) / "pack").open("wb") as file:
                    return pack_hot(
                        _target(opened), found, file, progress, seal=seal, kernels=kernels
                    )
            except OSError as err:
                raise storage_error(tr("cannot write in {staging}", staging=staging), err) from err


def _target(opened: Opened) -> DeviceTarget:
    return DeviceTarget(ImageDevice(opened.image), opened.supply, ())


def _find_same(opened: Opened, hot: HotLayer) -> LayerRef | None:
    """The layer of an image that has the same chunks.

    Only the chunks can be compared: a private layer is sealed differently each time.
    """
    for ref, layer in zip(opened.ref.signed.manifest.layers, opened.image.layers, strict=True):
        if has_chunks(layer, hot.chunks, opened.supply):
            return ref
    return None


def fitting_touches(target: StoredRef, profile: Profile | None, home: Home, *, tell: bool) -> bytes:
    """The packed touches of a profile, as far as they fit an image.

    Args:
        profile: None for the one that is known here.
        tell: notify the user if the profile is of another image.
    """
    manifest = target.signed.manifest
    if profile is None:
        profile = Subject.of_stored(target).find(home).profile
    before = (manifest, *ancestors(home, manifest))
    touches, remark = fit_profile(profile, manifest.image_id, manifest.size, before)
    if remark and tell:
        notify(remark)
    return touches
