"""The block server's process: opens image and overlay, serves them, makes all durable at the end.

One process serves one guest, so that a guest's disk outlives p2pcloopd.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.profile import Touch, divide_touches, without_marks
from p2pcloop.frozen import dataclass
from p2pcloop.image.device import ImageDevice
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.arrivals import Arrivals
from p2pcloopd.block.opening import Disk, Ready, open_disk
from p2pcloopd.block.source import LocalBackend, StoredBackend
from p2pcloopd.block.spec import BlockServerSpec, FilesOverlay, Inherited, MemoryPart
from p2pcloopd.block.vhost_queue import MOMENT
from p2pcloopd.block.vhost_server import serve_vhost_user
from p2pcloopd.block.waits import Waits
from p2pcloopd.unix_listener import unix_listener

if TYPE_CHECKING:
    import ssl


async def serve(
    spec: BlockServerSpec,
    ready: Ready,
    stopped: Callable[[], Awaitable[None]],
    attached: Callable[[bool], None] = lambda _: None,
    wanting: Callable[[], None] = lambda: None,
    more: Callable[[Disk], Awaitable[None]] | None = None,
    enough: Callable[[], None] = lambda: None,
    devices: Callable[[], None] = lambda: None,
    arrived: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Serve until `stopped` returns; then make all durable.

    Args:
        ready: called when the overlay is open and the image is known. From then on a front end may
            connect; it is answered as soon as the layers' maps are here.
        stopped: awaited; when it returns, serving ends.
        attached: called with True when a vhost-user front end has connected, with False when it
            has left.
        wanting: called when p2pcloopd is needed and there is no connection to it.
        more: serves the disk elsewhere, too, until it is cancelled.
        enough: called when a resumed guest may go on (`Arrivals.enough`).
        devices: called when the file of the spec's `DevicesPart` has its content.
        arrived: called when all that the profile of a resumed guest names is here.

    Returns:
        The facts about reads, for a boot's report. If touches are recorded, also `image_id` and
        `touches` (first block, blocks, monotonic seconds), for its profile.

    Raises:
        MismatchError, BusyError: the overlay is of another image, or open elsewhere.
        FormatError, CorruptError: image or overlay are damaged.
    """
    report: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        # Bind before anything is opened: a front end may connect as soon as `ready` is called.
        listeners = await _listen(spec, stack)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(_cancel_when, stopped, nursery.cancel_scope)
        disk = await open_disk(spec, nursery, stack, ready, wanting)
        arrivals = _fetch_ahead(spec, disk.image, nursery)
        if spec.memory is not None:
            nursery.start_soon(_serve_memory, spec, spec.memory, disk, arrivals)
            nursery.start_soon(_hand_over_devices, spec.memory, disk, arrivals, devices)
            nursery.start_soon(_tell_arrivals, arrivals, enough, arrived)
        keeper = disk.keeper if spec.for_guest else None
        if keeper is not None:
            nursery.start_soon(keeper.run)
        try:
            await _serve_front_ends(spec, disk, listeners, attached, more)
        finally:
            with trio.CancelScope(shield=True):
                await (disk.changes or disk.image).flush()
                if isinstance(disk.image, StoredBackend):
                    await disk.image.report_booted()
                if keeper is not None:
                    await keeper.keep()
            report = _report(disk, spec.inherited)
            disk.close()
        nursery.cancel_scope.cancel()
    return report


@dataclass(frozen=True, slots=True)
class _Listeners:
    """Where front ends connect: to the image, and to the device of a files overlay."""

    vhost_user: trio.socket.SocketType | None
    changes: trio.socket.SocketType | None
    nbd: list[trio.SocketListener]
    nbd_changes: list[trio.SocketListener]
    tls: ssl.SSLContext | None


async def _listen(spec: BlockServerSpec, stack: AsyncExitStack) -> _Listeners:
    vhost_user = spec.vhost_user
    if isinstance(vhost_user, Path):
        vhost_user = stack.enter_context(unix_listener(vhost_user))
    nbd: list[trio.SocketListener] = []
    tls = None if spec.nbd_tls is None else spec.nbd_tls.context()
    if isinstance(spec.nbd, socket.socket):
        nbd = [_listener(spec.nbd)]
    elif spec.nbd is not None:
        from p2pcloopd.block.nbd_listen import (  # noqa: PLC0415  guests need no NBD
            open_nbd_listeners,
        )

        nbd = await stack.enter_async_context(open_nbd_listeners(spec.nbd))
    files = spec.files or FilesOverlay(0)
    changes = files.vhost_user
    wrap = trio.socket.from_stdlib_socket
    return _Listeners(
        None if vhost_user is None else wrap(vhost_user),
        None if changes is None else wrap(changes),
        nbd,
        [] if files.nbd is None else [_listener(files.nbd)],
        tls,
    )


def _listener(sock: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _cancel_when(stopped: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await stopped()
    scope.cancel()


async def serve_until_signal(
    serving: Callable[[Callable[[], Awaitable[None]]], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """Run a server in the foreground, to the first SIGTERM, SIGINT or SIGHUP (a closed terminal).

    Further signals do nothing until it has ended: they would end it while it makes all durable.

    Args:
        serving: gets `stopped` of `serve`.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else by nohup(1)
        numbers.append(signal.SIGHUP)
    asked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def ask(*_: object) -> None:
        token.run_sync_soon(asked.set)

    # Not by trio's receiver: it sends those once more that arrived in the last moment.
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        return await serving(asked.wait)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve_front_ends(
    spec: BlockServerSpec,
    disk: Disk,
    listeners: _Listeners,
    attached: Callable[[bool], None],
    more: Callable[[Disk], Awaitable[None]] | None,
) -> None:
    served = [(disk.image, listeners.vhost_user), (disk.changes, listeners.changes)]
    moment = moment_of(spec, disk)
    async with trio.open_nursery() as nursery:
        if more is not None:
            nursery.start_soon(more, disk)
        if listeners.nbd or listeners.nbd_changes:
            from p2pcloopd.block.nbd_server import serve_nbd  # noqa: PLC0415  guests need no NBD

            serve = partial(serve_nbd, names=spec.names, tls=listeners.tls)
            for backend, each in (
                (disk.image, listeners.nbd),
                (disk.changes, listeners.nbd_changes),
            ):
                if backend is not None and each:
                    nursery.start_soon(serve, backend, each)
        for backend, listener in served:
            if backend is not None and listener is not None:
                serve_disk = partial(serve_vhost_user, moment=moment)
                nursery.start_soon(serve_disk, backend, listener, attached)


def moment_of(spec: BlockServerSpec, disk: Disk) -> float:
    """How long a queue may wait for kicks while other tasks have to wait, too (`QueueServer`).

    Only that of a guest with one disk, which has one queue, and all of whose image is here: what
    comes of others must be taken at once.
    """
    image = disk.image
    arrives = isinstance(image, StoredBackend) and not image.whole
    return MOMENT if spec.for_guest and disk.changes is None and not arrives else 0


def _fetch_ahead(
    spec: BlockServerSpec, image: LocalBackend | StoredBackend, nursery: trio.Nursery
) -> Arrivals:
    """Start to fetch what the front end is expected to read; return what tells of it."""
    if not isinstance(image, StoredBackend) or image.whole:
        arrivals = Arrivals()
        arrivals.end()
        return arrivals
    if not spec.profile:
        nursery.start_soon(image.prefetch.follow)
    nursery.start_soon(read_ahead, spec, image)
    return image.prefetch.arrivals


async def _tell_arrivals(
    arrivals: Arrivals, enough: Callable[[], None], arrived: Callable[[], None]
) -> None:
    await arrivals.enough()
    enough()
    await arrivals.all()
    arrived()


async def _hand_over_devices(
    memory: MemoryPart, disk: Disk, arrivals: Arrivals, tell: Callable[[], None]
) -> None:
    from p2pcloopd.block.devices_part import hand_over  # noqa: PLC0415  few guests are resumed

    if memory.devices is not None:
        device = ImageDevice(disk.image.device.image)  # these reads are no touches of the guest's
        await hand_over(device, disk.image, memory.devices, arrivals)
        tell()


async def _serve_memory(
    spec: BlockServerSpec, part: MemoryPart, disk: Disk, arrivals: Arrivals
) -> None:
    """Serve the memory of a resumed guest, and push what of it the profile foretells."""
    # Few guests are resumed.
    from p2pcloopd.block.memory_push import MemoryPush  # noqa: PLC0415
    from p2pcloopd.block.memory_server import MemoryServer  # noqa: PLC0415

    server = MemoryServer(disk.image, part, part.file)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        if spec.inherited is not None and spec.inherited.pushes is not None:
            sender = trio.socket.from_stdlib_socket(spec.inherited.pushes)
            push = MemoryPush(disk.image.device.image, part, sender, server.read)
            nursery.start_soon(push_pages, push.run, expected_touches(spec), disk.image, arrivals)


def expected_touches(spec: BlockServerSpec) -> Sequence[Touch]:
    """What the front end is expected to read."""
    memory = spec.memory
    if memory is None:
        return spec.profile
    touches = without_marks(spec.profile) if memory.whole_profile else spec.profile
    return touches if memory.devices is None else (memory.devices.touch, *touches)


async def push_pages(
    push: Callable[..., Awaitable[None]],
    profile: Sequence[Touch],
    image: LocalBackend | StoredBackend,
    arrivals: Arrivals,
) -> None:
    """Push pages as they arrive. To decode what the answer does not need takes time from it.

    Args:
        push: `MemoryPush.run`.
    """
    first, later = divide_touches(profile)
    await push(first, arrivals)
    if later and isinstance(image, StoredBackend):
        await image.prefetch.answer()
    await push(later, arrivals, later=True)


async def read_ahead(spec: BlockServerSpec, backend: StoredBackend) -> None:
    """Prefetch what the front end is expected to read, then backfill, if that is wanted."""
    await backend.prefetch.run(expected_touches(spec))
    if spec.fill is not None and isinstance(spec.image, SignedManifest):
        await backend.prefetch.fill(spec.image.manifest.all_layers, spec.fill)


def _report(disk: Disk, inherited: Inherited | None) -> dict[str, Any]:
    device = disk.image.device
    report: dict[str, Any] = {
        "chunks_touched": device.image.chunks_touched,
        "bytes_touched": device.image.bytes_touched,
        "waits": Waits().report(),
    }
    if device.touches is not None:
        report["image_id"] = device.image.image_id
        report["touches"] = list(map(list, device.touches.found))
    if isinstance(disk.image, StoredBackend):
        report["waits"] = disk.image.supplier.waits.report()
        report["prefetched"] = disk.image.prefetch.report()
    if inherited is not None and inherited.predecessors:
        report["restarts"] = inherited.predecessors
    if disk.changes is not None and (overlay := disk.changes.device.overlay) is not None:
        info = overlay.info()
        report["files"] = {"size": info.image_size, "data": info.data_blocks * BLOCK_SIZE}
    return report
