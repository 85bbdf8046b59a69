"""The block server's process: opens image and overlay, serves them, and makes all durable at last.

One process serves one guest, so that a guest's disk does not die with p2pcloopd.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import StorageError
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE
from p2pcloop.image.stored import StoredImage
from p2pcloop.image.touches import Touches
from p2pcloop.making.local import ImageFile, open_local
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease
from p2pcloop.store.overlays import register_overlay
from p2pcloopd.block.backend import Backend
from p2pcloopd.block.booted import tell_booted
from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd
from p2pcloopd.block.prefetch import Prefetch
from p2pcloopd.block.source import LocalBackend, StoredBackend
from p2pcloopd.block.supplier import Supplier
from p2pcloopd.block.vhost_server import serve_vhost_user
from p2pcloopd.control_client import ReconnectingClient
from p2pcloopd.unix_listener import unix_listener


@dataclass(frozen=True, slots=True)
class BlockServerSpec:
    """What is served and where.

    Attributes:
        home: the node whose store and p2pcloopd are used.
        image: an image file that lies here, or the manifest of an image in the store.
        overlay: the file that takes the writes, made where it does not exist; "temporary" keeps
            them until the end only; None serves read-only.
        vhost_user: a listening socket or a path for a vhost-user-blk front end, or None.
        nbd: `unix:PATH` or `HOST:PORT` for NBD clients, or None.
        once: end when the first vhost-user front end has gone.
        cache_size: bytes of decoded chunks that are kept in memory.
        secret: what opens a private image.
        profile: what is read ahead of the front end, in this order.
        fill: bytes a second at which all else is brought here when there is time, 0 for as many as
            come; None for not at all.
        note_touches: whether what is read first is noted, for a profile.
    """

    home: Home
    image: ImageFile | SignedManifest
    overlay: Path | str | None = None
    vhost_user: socket.socket | Path | None = None
    nbd: str | None = None
    once: bool = False
    cache_size: int = DEFAULT_CACHE_SIZE
    secret: bytes | None = field(default=None, repr=False)
    profile: tuple[Touch, ...] = ()
    fill: int | None = None
    note_touches: bool = False


_log = logging.getLogger(__name__)

TEMPORARY = "temporary"

Ready = Callable[[], None]


async def serve(
    spec: BlockServerSpec, ready: Ready, stopped: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    """Serve until the front end has gone (`once`) or `stopped` returns; then make all durable.

    Args:
        ready: called when the overlay is open and the image is known; from then on a front end
            may connect, and is answered as soon as the layers' maps are here.
        stopped: awaited; when it returns, serving ends.

    Returns:
        What was read, for a boot's report; where touches are noted, also `image_id` and
        `touches` (first block, blocks, monotonic seconds), for its profile.

    Raises:
        MismatchError, BusyError: the overlay is of another image, or open elsewhere.
        FormatError, CorruptError: image or overlay are damaged.
    """
    report: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        # Bound before anything is opened: a front end may connect from `ready` on.
        listeners = await _listen(spec, stack)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(_cancel_when, stopped, nursery.cancel_scope)
        backend = await _open(spec, nursery, stack, ready)
        if isinstance(backend, StoredBackend):
            if not spec.profile:
                nursery.start_soon(backend.prefetch.follow)
            nursery.start_soon(_read_ahead, spec, backend)
        try:
            await _serve_front_ends(spec, backend, listeners)
        finally:
            with trio.CancelScope(shield=True):
                await backend.flush()
                if isinstance(backend, StoredBackend):
                    await backend.tell_booted()
            report = _report(backend)
            backend.device.close()
        nursery.cancel_scope.cancel()
    return report


@dataclass(frozen=True, slots=True)
class _Listeners:
    """Where front ends connect."""

    vhost_user: trio.socket.SocketType | None
    nbd: list[trio.SocketListener]


async def _listen(spec: BlockServerSpec, stack: AsyncExitStack) -> _Listeners:
    vhost_user = spec.vhost_user
    if isinstance(vhost_user, Path):
        vhost_user = stack.enter_context(unix_listener(vhost_user))
    nbd: list[trio.SocketListener] = []
    if spec.nbd is not None:
        nbd = await stack.enter_async_context(open_nbd_listeners(spec.nbd))
    if vhost_user is None:
        return _Listeners(None, nbd)
    return _Listeners(trio.socket.from_stdlib_socket(vhost_user), nbd)


async def _cancel_when(stopped: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await stopped()
    scope.cancel()


async def wait_for_signal() -> None:
    """Return at SIGTERM or SIGINT, as `stopped` of a server that runs in the foreground."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


async def _open(
    spec: BlockServerSpec, nursery: trio.Nursery, stack: AsyncExitStack, ready: Ready
) -> LocalBackend | StoredBackend:
    if isinstance(spec.image, SignedManifest):
        lease = stack.enter_context(Lease(spec.home, spec.image.id))
        return await _open_stored(spec, spec.image, lease, nursery, ready)
    return _open_file(spec, spec.image, ready)


def _open_file(spec: BlockServerSpec, file: ImageFile, ready: Ready) -> LocalBackend:
    image = open_local(
        *(file, spec.home.indexes, _no_progress), cache_size=spec.cache_size, spill=spec.home.tmp
    )
    overlay = _open_overlay(spec, image.image_id, image.size)
    ready()
    return LocalBackend(ImageDevice(image, overlay, _touches(spec)))


async def _open_stored(
    spec: BlockServerSpec,
    signed: SignedManifest,
    lease: Lease,
    nursery: trio.Nursery,
    ready: Ready,
) -> StoredBackend:
    manifest = signed.manifest
    # Before an overlay is made: a wrong secret is refused here.
    stored = StoredImage.of_home(manifest, spec.home, spec.secret)
    overlay = _open_overlay(
        spec, manifest.image_id, manifest.size, manifest_id=signed.id, name=str(manifest.name)
    )
    ready()
    client = ReconnectingClient(spec.home.control_socket)
    await nursery.start(client.run)
    supplier = Supplier(client, stored.accept)
    while True:
        try:
            image = stored.open(cache_size=spec.cache_size, spill=spec.home.tmp)
        except Missing as missing:
            await supplier.supply(missing)
        else:

            async def tell() -> None:
                await tell_booted(spec.home, lease, stored.used())

            device = ImageDevice(image, overlay, _touches(spec))
            return StoredBackend(device, supplier, Prefetch(device, client, supplier), tell)


def _open_overlay(
    spec: BlockServerSpec,
    image_id: bytes,
    size: int,
    *,
    manifest_id: bytes | None = None,
    name: str = "",
) -> Overlay | None:
    if spec.overlay is None:
        return None
    if spec.overlay == TEMPORARY:
        return Overlay.create_temporary(spec.home.tmp, image_id=image_id, image_size=size)
    path = Path(spec.overlay)
    if path.exists():
        overlay = Overlay.open(path, image_id=image_id)
    else:
        overlay = Overlay.create(
            path, image_id=image_id, image_size=size, manifest_id=manifest_id, name=name
        )
    if manifest_id is not None:
        try:
            register_overlay(spec.home, path, manifest_id)
        except StorageError as err:  # a full disk is no reason not to go on with what is here
            _log.warning("what lies below %s may be evicted: %s", path, err)
    return overlay


async def _serve_front_ends(spec: BlockServerSpec, backend: Backend, listeners: _Listeners) -> None:
    async with trio.open_nursery() as nursery:
        if listeners.nbd:
            nursery.start_soon(serve_nbd, backend, listeners.nbd)
        if listeners.vhost_user is not None:
            await serve_vhost_user(backend, listeners.vhost_user, once=spec.once)
            nursery.cancel_scope.cancel()


def _touches(spec: BlockServerSpec) -> Touches | None:
    return Touches() if spec.note_touches else None


async def _read_ahead(spec: BlockServerSpec, backend: StoredBackend) -> None:
    """Bring what the front end is expected to read, then the rest, if that is wanted."""
    await backend.prefetch.run(spec.profile)
    if spec.fill is not None and isinstance(spec.image, SignedManifest):
        await backend.prefetch.fill(spec.image.manifest.layers, spec.fill)


def _report(backend: LocalBackend | StoredBackend) -> dict[str, Any]:
    device = backend.device
    report: dict[str, Any] = {
        "chunks_touched": device.image.chunks_touched,
        "bytes_touched": device.image.bytes_touched,
        "waits": _waits([]),
    }
    if device.touches is not None:
        report["image_id"] = device.image.image_id
        report["touches"] = list(map(list, device.touches.found))
    if isinstance(backend, StoredBackend):
        report["waits"] = _waits(backend.supplier.waits)
        report["prefetched"] = backend.prefetch.report()
    return report


def _waits(seconds: list[float]) -> dict[str, Any]:
    if not seconds:
        return {"count": 0}
    waits = sorted(seconds)
    return {
        "count": len(waits),
        "p50_ms": round(1000 * waits[len(waits) // 2], 3),
        "p99_ms": round(1000 * waits[len(waits) * 99 // 100], 3),
        "max_ms": round(1000 * waits[-1], 3),
    }


def _no_progress(done: int) -> None:
    """A file that lies here is read in a moment; its index is kept for the next time."""
