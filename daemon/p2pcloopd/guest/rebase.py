"""Moves a files overlay to another version of its image, by two guests that nobody sees."""

from __future__ import annotations

import io
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from p2pcloop.cli.refs import StoredRef
from p2pcloop.errors import GuestError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.overlay_copy import copy_overlay, replace_overlay
from p2pcloop.image.api import Missing
from p2pcloop.image.reader import DeviceReader
from p2pcloop.making.local import ImageFile, open_local
from p2pcloop.making.rebase import (
    MAX_ANSWER,
    Comparison,
    Conflict,
    find_conflicts,
    read_comparison,
    take_theirs,
)
from p2pcloop.store.home import Home
from p2pcloop.store.overlays import register_overlay
from p2pcloopd.block.files_overlay import files_device
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec, FilesOverlay
from p2pcloopd.entry import run
from p2pcloopd.guest.comparing import build_changing_initramfs, build_comparing_initramfs
from p2pcloopd.guest.disk import disk_of, layer_offsets
from p2pcloopd.guest.kernel import Kernel
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.uml import run_guest
from p2pcloopd.unix_listener import bind_unix_listener

_MEMORY = 256 << 20
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Move:
    """What is to be moved where.

    Attributes:
        overlay: the file; whoever calls holds it open, so that nobody writes it.
        old: the image that it lies on.
        new: the image that it is to lie on.
        home: of the node.
    """

    overlay: Path
    old: ImageFile | StoredRef
    new: ImageFile | StoredRef
    home: Home


def image_id_of(target: ImageFile | StoredRef, home: Home) -> bytes:
    """Return the SHA-256 that names an image's content; a file is read for it, once."""
    if isinstance(target, StoredRef):
        return target.signed.manifest.image_id
    image = open_local(target, home.indexes, lambda _done: None)
    image.close()
    return image.image_id


def move_overlay(move: Move, choice: str) -> tuple[list[Conflict], bool]:
    """Move an overlay, if that is wanted with the conflicts that there are.

    All is done to a copy beside it, which takes its place at the end: whatever goes wrong, and
    whenever, the overlay is as it was.

    Args:
        move: what, and where.
        choice: "ours" keeps the overlay's side of each conflict, "theirs" takes the new image's;
            "stop" moves only where there is none.

    Returns:
        The conflicts, and whether the overlay was moved.

    Raises:
        GuestError: a guest could not do its part.
        FormatError, StorageError, NeedsPackageError: as for boots.
    """
    with _copy(move) as copy:
        conflicts = find_conflicts(_compare(move, copy))
        if conflicts and choice == "stop":
            return conflicts, False
        if conflicts and choice == "theirs":
            drop, adopt = take_theirs(conflicts)
            build = partial(build_changing_initramfs, drop=drop, adopt=adopt)
            _run_guest([_disk(move.new, copy, move.home)], build)
        replace_overlay(copy, move.overlay)
    if isinstance(move.new, StoredRef):
        register_overlay(move.home, move.overlay, move.new.signed.id)
    return conflicts, True


@contextmanager
def _copy(move: Move) -> Iterator[Path]:
    """A copy of the overlay that lies on the new image; it is removed unless it was renamed."""
    stored = move.new.signed if isinstance(move.new, StoredRef) else None
    copy = copy_overlay(
        move.overlay,
        image_id=image_id_of(move.new, move.home),
        manifest_id=stored.id if stored else None,
        name=str(stored.manifest.name) if stored else "",
    )
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _compare(move: Move, copy: Path) -> Comparison:
    answer = move.home.tmp / f"answer-{secrets.token_hex(8)}"
    try:
        disks = [_disk(move.new, copy, move.home), _disk(move.old, answer, move.home)]
        build = partial(
            build_comparing_initramfs, old=layer_offsets(move.old), new=layer_offsets(move.new)
        )
        _run_guest(disks, build)
        with Overlay.open(answer, image_id=None, read_only=True, mode="files") as overlay:
            device = files_device(overlay)
            return read_comparison(io.BufferedReader(DeviceReader(device, _never), _BUFFER))
    finally:
        answer.unlink(missing_ok=True)


def _disk(target: ImageFile | StoredRef, overlay: Path, home: Home) -> BlockServerSpec:
    files = FilesOverlay(MAX_ANSWER)
    return disk_of(target, overlay, home, ahead=False, fill=-1, files=files)


def _run_guest(disks: Sequence[BlockServerSpec], initramfs: Callable[[Kernel], bytes]) -> None:
    """Run a guest to its end, with the two disks of each of these.

    Raises:
        GuestError: it did not end as it should.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pcloop-")))
        servers, sockets = [], []
        for number, disk in enumerate(disks):
            assert disk.files is not None
            paths = [folder / f"{number}-{part}" for part in ("image", "files")]
            with bind_unix_listener(paths[0]) as image, bind_unix_listener(paths[1]) as files:
                served = replace(disk.files, vhost_user=files)
                server = BlockServerProcess(replace(disk, vhost_user=image, files=served))
            servers.append(stack.enter_context(server))
            sockets += paths
        spec = GuestSpec(
            sockets[0],
            memory=_MEMORY,
            console=Path(os.devnull),
            more_disks=tuple(sockets[1:]),
            initramfs=initramfs,
        )
        run(partial(_live, spec, servers))


async def _live(spec: GuestSpec, servers: Sequence[BlockServerProcess]) -> None:
    for server in servers:
        await server.wait_ready()
    async with trio.open_nursery() as nursery:
        # What ends one of them ends the guest.
        for server in servers:
            nursery.start_soon(server.finish)
        result = await run_guest(spec)
        for server in servers:
            server.stop()
    if result.exit_code or result.reason != "poweroff":
        raise GuestError(
            f"the guest that looks into the file systems ended early ({result.reason})",
            hint="the overlay is as it was; try again",
        )


def _never(missing: Missing) -> None:
    raise AssertionError(f"a local image cannot lack anything, yet: {missing}")
