"""Publishing a files overlay: its device is put behind the device of its image."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from p2pcloop.client.interpreter import run_module
from p2pcloop.client.open_stored import Opened
from p2pcloop.errors import GuestError, MismatchError, UsageError
from p2pcloop.formats.boot_parameters import MAX_ROOTS, BootParameters, Root
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.opened import ALIGNMENT
from p2pcloop.making.targets import JoinedTarget, files_target
from p2pcloop.store.home import Home
from p2pcloop.words import tr


def open_files_target(
    path: Path, opened: Opened, below: MergedImage | None, home: Home, stack: ExitStack
) -> JoinedTarget:
    """Open an image with a copy of a files overlay behind it, whose journal has been replayed.

    Args:
        opened: the image that the overlay was made on.
        below: the image that both are compared with, if that is another one.

    Raises:
        MismatchError: it was made on another image.
        GuestError: its file system could not be mounted.
    """
    held = stack.enter_context(Overlay.open(path, image_id=None, read_only=True, mode="files"))
    if held.info().image_id != opened.image.image_id:
        raise MismatchError(
            tr("{path} was made on another image than {ref}", path=path, ref=opened.ref.name),
            hint="name the one that it was made on with --base",
        )
    copy = _settled(path, home, stack.enter_context(home.staging()))
    overlay = Overlay.open(copy, image_id=None, read_only=True, mode="files")
    stack.callback(overlay.close)
    size = opened.ref.signed.manifest.disk_size
    return files_target(opened.image, overlay, opened.supply, _start(size), below, size)


def joined_boot(base: Manifest, overlay_size: int) -> BootParameters:
    """The base's boot parameters, with the overlay's files on top of its root.

    Raises:
        UsageError: the root consists of as many file systems as it may.
    """
    roots = base.boot.roots or (Root(0, base.disk_size),)
    if len(roots) == MAX_ROOTS:
        raise UsageError(
            tr(
                "{base} is of {max_roots} file systems one over the other, and takes no more",
                base=base.name,
                max_roots=MAX_ROOTS,
            ),
            hint="move your overlay onto an earlier version (`p2pcloop rebase`), then publish it",
        )
    changes = Root(_start(base.disk_size), overlay_size, changes=True)
    return replace(base.boot, roots=(*roots, changes))


def _start(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _settled(overlay: Path, home: Home, folder: Path) -> Path:
    """A copy of an overlay whose journal has been replayed, in a folder."""
    # A guest replays the journal, and this library knows no guests:
    # p2pcloopd/guest/unseen/settle.py.
    module = "p2pcloopd.guest.unseen.settle"
    done = run_module(module, str(home.root), str(overlay.absolute()), str(folder))
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().removeprefix("p2pcloop: ")
        raise GuestError(
            tr(
                "the file system in {overlay} cannot be looked at: {said}",
                overlay=overlay,
                said=said,
            )
        )
    return Path(os.fsdecode(done.stdout))
