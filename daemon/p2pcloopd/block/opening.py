"""Opens the image of a block server, and the overlay over it or beside it."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from p2pcloop.client.overlay_base import open_overlay_on
from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.formats.manifest import Manifest, SignedManifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from p2pcloop.image.touches import Touches
from p2pcloop.image.zeros import files_device
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.store.kept import KeptChunks
from p2pcloop.store.lease import Lease
from p2pcloop.store.overlays import register_overlay
from p2pcloop.words import tr
from p2pcloopd.block.booted import report_booted
from p2pcloopd.block.fetched_file import FetchedFile
from p2pcloopd.block.files_overlay import make_file_system
from p2pcloopd.block.keeping import Keeper
from p2pcloopd.block.prefetch import Prefetch
from p2pcloopd.block.source import LocalBackend, StoredBackend
from p2pcloopd.block.spec import TEMPORARY, BlockServerSpec
from p2pcloopd.block.supplier import Supplier
from p2pcloopd.block.timeline_file import TimelineFile
from p2pcloopd.block.waiting_file import WaitingFile
from p2pcloopd.control_client import ControlClient, ReconnectingClient

_log = logging.getLogger(__name__)

Ready = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Disk:
    """The devices of a guest.

    Attributes:
        image: the image, with a block overlay over it; read-only without one.
        changes: the device of a files overlay, or None.
        keeper: keeps what a boot has decoded of the image, or None.
    """

    image: LocalBackend | StoredBackend
    changes: LocalBackend | None
    keeper: Keeper | None = None

    def close(self) -> None:
        """Close all files; unflushed writes may be lost."""
        self.image.device.close()
        if self.changes is not None:
            self.changes.device.close()


async def open_disk(
    spec: BlockServerSpec,
    nursery: trio.Nursery,
    stack: AsyncExitStack,
    ready: Ready,
    wanting: Callable[[], None],
) -> Disk:
    """Open the image and the overlay; an overlay that does not exist is made.

    Args:
        nursery: runs the tasks that fetch the image's bytes.
        stack: holds the image's lease.
        ready: called when the overlay is open; the image's maps may arrive after that.
        wanting: called when p2pcloopd is needed and there is no connection to it.

    Raises:
        MismatchError, BusyError: the overlay is of another image or mode, or open elsewhere.
        FormatError, CorruptError: image or overlay are damaged.
        NeedsPackageError, GuestError: there is no mke2fs, or it failed.
        StorageError: the disk refused.
    """
    if isinstance(spec.image, SignedManifest):
        lease = stack.enter_context(Lease(spec.home, spec.image.id, _holder(spec, spec.image)))
        return await _open_stored(spec, spec.image, lease, nursery, ready, wanting)
    return _open_file(spec, spec.image, ready)


def _holder(spec: BlockServerSpec, signed: SignedManifest) -> str:
    """Return the name of this reader, for `p2pcloop daemon stop` to show."""
    name = signed.manifest.name
    if spec.for_guest:  # forked by the command that runs the guest
        guest = os.getppid() if spec.inherited is None else spec.inherited.guest
        return tr("the guest of {name}, process {guest}", name=name, guest=guest)
    return tr(
        "`p2pcloop {command}` of {name}, process {getpid}",
        command=spec.command,
        name=name,
        getpid=os.getpid(),
    )


def _report_gone(home: Home, waiting: WaitingFile) -> None:
    waiting.report(tr("no p2pcloopd runs on {root}", root=home.root))
    _log.warning(
        "the guest waits: no p2pcloopd runs on %s; start it with `p2pcloop daemon start --home %s`",
        *(home.root, shlex.quote(str(home.root))),
    )


async def _know_again(manifest: Manifest, waiting: WaitingFile, client: ControlClient) -> None:
    """Have a p2pcloopd that came back know where the image may be had.

    Else it would read by BitTorrent alone, which takes longer and fetches whole pieces.
    """
    waiting.clear()
    try:
        await client.call("resolve", ref=str(manifest.name), at=manifest.version)
    except P2pcloopError as err:  # its layers are had from where they were before
        _log.debug("p2pcloopd knows nothing of %s any more: %s", manifest.name, err)


def _open_file(spec: BlockServerSpec, file: ImageFile, ready: Ready) -> Disk:
    # What reads files of all kinds takes a while to load, and most boots are not of a file.
    from p2pcloop.making.local import open_local  # noqa: PLC0415
    from p2pcloop.making.pack import odd_length  # noqa: PLC0415

    image = open_local(
        *(file, spec.home.indexes, _no_progress), cache_size=spec.cache_size, spill=spec.home.tmp
    )
    overlay = open_overlay(spec, image.image_id, image.size)
    ready()
    over, changes = _place(spec, overlay)
    length = odd_length(file) if spec.memory is None else spec.memory.offset
    return Disk(LocalBackend(_device(spec, image, over, length)), changes)


async def _open_stored(
    spec: BlockServerSpec,
    signed: SignedManifest,
    lease: Lease,
    nursery: trio.Nursery,
    ready: Ready,
    wanting: Callable[[], None],
) -> Disk:
    manifest = signed.manifest
    # Of a private image nothing lies on a disk that its secret does not protect.
    kept = None if manifest.private else KeptChunks(spec.home, manifest.image_id)
    # A wrong secret is refused here, before an overlay is made.
    stored = StoredImage.of_home(manifest, spec.home, spec.secret, kept=kept)
    try:
        overlay = open_overlay(
            spec, manifest.image_id, manifest.size, manifest_id=signed.id, name=str(manifest.name)
        )
        over, changes = _place(spec, overlay)
        ready()
        supplier = await _connected(spec, manifest, stored, nursery, wanting)
        image = await _arrived(spec, stored, supplier)
    except BaseException:  # a reader that gave up, too: a mount opens one image after another
        stored.close()
        raise

    async def tell() -> None:
        await report_booted(spec.home, lease, stored.used())

    device = _device(spec, image, over, manifest.disk_length)
    prefetch = Prefetch(device, supplier.client, supplier)
    keeper = Keeper(spec.home, image, kept) if kept is not None else None
    backend = StoredBackend(device, supplier, prefetch, tell, whole=stored.is_whole())
    return Disk(backend, changes, keeper)


async def _connected(
    spec: BlockServerSpec,
    manifest: Manifest,
    stored: StoredImage,
    nursery: trio.Nursery,
    wanting: Callable[[], None],
) -> Supplier:
    """What supplies an image's bytes, by p2pcloopd, whenever there is one."""
    waiting = WaitingFile(spec.waiting)
    client = ReconnectingClient(
        spec.home.control_socket,
        partial(_report_gone, spec.home, waiting),
        partial(_know_again, manifest, waiting),
        wanting,
    )
    await nursery.start(client.run)
    fetched, timeline = FetchedFile(spec.fetched), TimelineFile(spec.timeline)
    return Supplier(client, stored.accept, waiting, fetched, timeline)


async def _arrived(spec: BlockServerSpec, stored: StoredImage, supplier: Supplier) -> MergedImage:
    """The image, once the maps of its layers are here."""
    while True:
        try:
            return stored.open(cache_size=spec.cache_size, spill=spec.home.tmp)
        except Missing as missing:
            await supplier.supply(missing)


def open_overlay(
    spec: BlockServerSpec,
    image_id: bytes,
    size: int,
    *,
    manifest_id: bytes | None = None,
    name: str = "",
) -> Overlay | None:
    """Open the overlay of a block server, or make it; None where it has none.

    Args:
        image_id, size: of the image below.
        manifest_id, name: of that, where it has a manifest.

    Raises:
        As `open_disk`.
    """
    if spec.overlay is None:
        return None
    fill = None
    if spec.files is not None:
        size = spec.files.size
        fill = partial(make_file_system, folder=spec.home.tmp)
    remains = None if spec.inherited is None else spec.inherited.remains
    if spec.overlay == TEMPORARY:
        return Overlay.create_temporary(
            spec.home.tmp, image_id=image_id, image_size=size, fill=fill, remains=remains
        )
    path = Path(spec.overlay)
    if path.exists():
        overlay = open_overlay_on(path, spec.home, image_id=image_id, mode=spec.mode)
    else:
        overlay = Overlay.create(
            path, image_id=image_id, image_size=size, manifest_id=manifest_id, name=name, fill=fill
        )
    if remains is not None:
        overlay.leave(remains)
    if manifest_id is not None:
        try:
            register_overlay(spec.home, path, manifest_id)
        except StorageError as err:  # a full disk is no reason not to go on with what is here
            _log.warning("what lies below %s may be evicted: %s", path, err)
    return overlay


def _place(
    spec: BlockServerSpec, overlay: Overlay | None
) -> tuple[Overlay | None, LocalBackend | None]:
    """Put an overlay where its mode says: over the image, or on a device of its own."""
    if spec.files is None or overlay is None:
        return overlay, None
    return None, LocalBackend(files_device(overlay))


def _device(
    spec: BlockServerSpec, image: MergedImage, overlay: Overlay | None, length: int
) -> ImageDevice:
    return ImageDevice(image, overlay, Touches() if spec.record_touches else None, length=length)


def _no_progress(done: int) -> None:
    """Show no progress: a local file is read quickly, and its index is kept for the next time."""
