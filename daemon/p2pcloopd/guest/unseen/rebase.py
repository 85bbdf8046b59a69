"""Moves a files overlay to another version of its image, by means of two unseen guests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from p2pcloop.client.progress import progress_bar
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.overlay_copy import copy_overlay, replace_overlay
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import never_missing
from p2pcloop.image.reader import DeviceReader
from p2pcloop.image.zeros import files_device
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import open_local
from p2pcloop.making.pack import device_size
from p2pcloop.making.rebase import (
    Comparison,
    Conflict,
    find_conflicts,
    read_comparison,
    take_theirs,
)
from p2pcloop.store.home import Home
from p2pcloop.store.overlays import register_overlay
from p2pcloopd.guest.disk import layer_places
from p2pcloopd.guest.unseen.comparing import (
    build_changing_initramfs,
    build_comparing_initramfs,
)
from p2pcloopd.guest.unseen.guests import run_unseen, unseen_disk

_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Move:
    """A files overlay, the image that it lies on, and the image that it moves to.

    Attributes:
        overlay: the file; the caller holds it open, so that no other process writes it.
        old: the image that it lies on.
        new: the image that it is to lie on.
        home: of the node.
    """

    overlay: Path
    old: ImageFile | StoredRef
    new: ImageFile | StoredRef
    home: Home


def image_id_of(target: ImageFile | StoredRef, home: Home) -> bytes:
    """Return the SHA-256 that names an image's content; of a file it is computed once."""
    if isinstance(target, StoredRef):
        return target.signed.manifest.image_id
    with progress_bar("reading") as progress:
        progress(0, device_size(target))
        image = open_local(target, home.indexes, progress)
    image.close()
    return image.image_id


def move_overlay(move: Move, choice: str) -> tuple[list[Conflict], bool]:
    """Move an overlay, unless there are conflicts with which the caller does not want that.

    The guests change a copy beside the overlay, which takes its place at the end: if anything goes
    wrong, the overlay is as it was.

    Args:
        move: the overlay, and both images.
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
            run_unseen([unseen_disk(move.new, copy, move.home)], build)
        replace_overlay(copy, move.overlay)
    if isinstance(move.new, StoredRef):
        register_overlay(move.home, move.overlay, move.new.signed.id)
    return conflicts, True


@contextmanager
def _copy(move: Move) -> Iterator[Path]:
    """Yield a copy of the overlay that lies on the new image; remove it unless it was renamed."""
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
    with move.home.staging() as folder:
        answer = folder / "answer"
        disks = [unseen_disk(move.new, copy, move.home), unseen_disk(move.old, answer, move.home)]
        build = partial(
            build_comparing_initramfs, old=layer_places(move.old), new=layer_places(move.new)
        )
        run_unseen(disks, build)
        with Overlay.open(answer, image_id=None, read_only=True, mode="files") as overlay:
            device = files_device(overlay)
            return read_comparison(io.BufferedReader(DeviceReader(device, never_missing), _BUFFER))
