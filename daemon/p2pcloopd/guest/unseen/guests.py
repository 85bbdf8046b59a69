"""Unseen guests, without a console: they look into file systems, or change a files overlay."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import trio

from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import GuestError
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_file
from p2pcloop.making.rebase import MAX_ANSWER
from p2pcloop.store.home import Home
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec, FilesOverlay
from p2pcloopd.entry import run
from p2pcloopd.guest.disk import disk_of
from p2pcloopd.guest.lifecycle import run_guest
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.with_block_server import serve_disks

_MEMORY = 256 << 20


def unseen_disk(target: ImageFile | StoredRef, overlay: Path, home: Home) -> BlockServerSpec:
    """Return what serves an image and a files overlay, which is made if it does not exist."""
    files = FilesOverlay(MAX_ANSWER)
    return disk_of(target, overlay, home, prefetch=False, fill=-1, files=files)


def empty_image(folder: Path) -> ImageFile:
    """Make the image below a files overlay that has none: a block of zeros."""
    nothing = folder / "nothing"
    nothing.write_bytes(bytes(BLOCK_SIZE))
    return inspect_file(nothing, raw=True)


def run_unseen(
    disks: Sequence[BlockServerSpec],
    initramfs: Callable[[Kernel], bytes],
    *,
    memory: int = _MEMORY,
    read_only: bool = False,
    lifeline: int | None = None,
) -> None:
    """Run a guest to its end. Each of `disks` gives it one, or two with a files overlay.

    Args:
        disks: in their order, from /dev/vda on.
        initramfs: makes the archive for its kernel.
        memory: bytes.
        read_only: the root is mounted read-only, where the first root mounts one.
        lifeline: a pipe from the process that wants it: when that ends, the guest does.

    Raises:
        GuestError: it did not power off by itself.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        servers, sockets = [], []
        for number, disk in enumerate(disks):
            parts = ("image",) if disk.files is None else ("image", "files")
            paths = [folder / f"{number}-{part}" for part in parts]
            servers.append(stack.enter_context(serve_disks(disk, paths)))
            sockets += paths
        spec = GuestSpec(
            sockets[0],
            memory=memory,
            read_only=read_only,
            console=Path(os.devnull),
            more_disks=tuple(sockets[1:]),
            initramfs=initramfs,
        )
        run(partial(_live, spec, servers, lifeline))


async def _live(
    spec: GuestSpec, servers: Sequence[BlockServerProcess], lifeline: int | None
) -> None:
    async with trio.open_nursery() as nursery:
        if lifeline is not None:
            nursery.start_soon(_end_with, lifeline)
        await _work(spec, servers)
        nursery.cancel_scope.cancel()


async def _end_with(lifeline: int) -> None:
    await trio.lowlevel.wait_readable(lifeline)
    raise GuestError("the command that the guest worked for has ended")


async def _work(spec: GuestSpec, servers: Sequence[BlockServerProcess]) -> None:
    for server in servers:
        await server.wait_ready()
    async with trio.open_nursery() as nursery:
        # An error of a block server ends the guest.
        for server in servers:
            nursery.start_soon(server.finish)
        # One that was asked to end would power off as one does that has done its work.
        result = await run_guest(spec, interrupt=lambda _: False)
        for server in servers:
            server.stop()
    if result.exit_code or result.reason != "poweroff":
        raise GuestError(
            tr(
                "the guest that looks into the file systems ended early ({reason})",
                reason=result.reason,
            ),
            hint="the overlay is as it was; try again",
        )
