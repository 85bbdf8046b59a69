"""A files overlay as it can be published: a copy whose journal has been replayed.

A guest cannot unmount the file system below its own root, so an overlay always has a journal to
replay; and as a layer of other images it cannot be written. An unseen guest mounts the copy and
unmounts it again. This is a program of its own, run by `p2pcloop publish`:

    python -m p2pcloopd.guest.unseen.settle HOME OVERLAY FOLDER

It prints the path of the copy, which lies in the folder. If standard input ends before, so does
this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from p2pcloop.client.terminal import report_error
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.overlay_copy import copy_overlay
from p2pcloop.store.home import Home
from p2pcloopd.guest.unseen.comparing import build_changing_initramfs
from p2pcloopd.guest.unseen.guests import empty_image, run_unseen, unseen_disk
from p2pcloopd.guest.unseen.rebase import image_id_of


def settle(overlay: Path, home: Home, folder: Path) -> Path:
    """Copy an overlay that no process writes into a folder, and replay the copy's journal.

    Raises:
        GuestError: the guest could not mount it.
        P2pcloopError: as for boots.
    """
    image = empty_image(folder)
    image_id = image_id_of(image, home)
    copy = copy_overlay(overlay, image_id=image_id, manifest_id=None, name="", folder=folder)
    disks = [unseen_disk(image, copy, home)]
    run_unseen(disks, build_changing_initramfs, lifeline=sys.stdin.fileno())
    return copy


def main() -> None:
    """Do what the arguments say; errors are reported as those of any command."""
    try:
        copy = settle(Path(sys.argv[2]), Home.at(Path(sys.argv[1])), Path(sys.argv[3]))
    except P2pcloopError as err:
        sys.exit(report_error(err))
    sys.stdout.buffer.write(os.fsencode(copy))  # it may be no text


if __name__ == "__main__":
    main()
