"""One file system of an image and the files that were changed over it, as a live CD has one.

An unseen guest joins them, and writes the result by the field's own programs, xorriso or
mksquashfs, which it gets from this machine. So owners, devices and attributes are kept without
root, and these programs read a stranger's files in a sandbox. This is a program of its own, run by
`p2pcloop export --iso`:

    python -m p2pcloopd.guest.unseen.joined_root HOME

Standard input has one line of JSON: `ref` and `at`, or `file` and `raw`, of the image; `overlay`, a
path or null; `made`, the path of a files overlay to make, whose device then begins with the file
system, in a staging directory of the caller; `type` ("iso9660" or "squashfs"), and of these
`volume`, or `codec` and `block_size`. It ends when standard input does.

Disks: /dev/vda is the image, /dev/vdb the files overlay, /dev/vdc is empty, /dev/vdd is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import report_error
from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr
from p2pcloopd.block.spec import MIN_FILES_SIZE, FilesOverlay
from p2pcloopd.guest.disk import choose_files, disk_of, layer_places, size_of
from p2pcloopd.guest.system.files_root import LAYERS
from p2pcloopd.guest.system.host_program import host_program
from p2pcloopd.guest.system.initramfs import Part, make_initramfs
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.unseen.guests import empty_image, run_unseen

_MEMORY = 1 << 30
"""Bytes for xorriso, which holds all names of the file system: some 1 KiB each."""

_PROGRAMS = {
    "iso9660": ("xorriso", "xorriso"),
    "squashfs": ("mksquashfs", "squashfs-tools"),
}
_APPLETS = ("dmesg", "grep", "sync", "tail", "umount")


def make_root(
    target: ImageFile | StoredRef, overlay: Path | None, facts: dict[str, Any], home: Home
) -> None:
    """Make the file system; see the module.

    Raises:
        GuestError: the guest could not make it.
        NeedsPackageError: xorriso or mksquashfs is not on this system.
        P2pcloopError: as for boots.
    """
    files = choose_files(target, overlay, "files", None, home)
    assert files is not None, "files were asked for"
    made = Path(facts["made"])
    # Uncompressed, and a copy of each changed file beside the image's own.
    size = max(2 * (size_of(target) + _data_of(overlay)), MIN_FILES_SIZE)
    build = partial(_initramfs, facts=facts, places=layer_places(target))
    disks = [
        disk_of(target, overlay, home, prefetch=False, fill=-1, files=files),
        disk_of(
            *(empty_image(made.parent), made, home),
            prefetch=False,
            fill=-1,
            files=FilesOverlay(-(-size // BLOCK_SIZE) * BLOCK_SIZE),
        ),
    ]
    try:
        run_unseen(disks, build, memory=_MEMORY, read_only=True, lifeline=sys.stdin.fileno())
    except GuestError as err:
        raise GuestError(
            tr(
                "the files of {target} and of its changes cannot be joined: {err}",
                target=target.name,
                err=err,
            ),
            hint=err.hint,
        ) from err


def _data_of(overlay: Path | None) -> int:
    """How much a files overlay may hold: as much as it takes on the disk."""
    return 0 if overlay is None else overlay.stat().st_blocks * 512


def _initramfs(kernel: Kernel, *, facts: dict[str, Any], places: Sequence[str]) -> bytes:
    joined = Part(steps=("joined-root",), settings={"PLACES": " ".join(places)})
    settings = {
        "TYPE": facts["type"],
        "VOLUME": facts.get("volume", ""),
        "CODEC": facts.get("codec", ""),
        "BLOCK": str(facts.get("block_size", "")),
    }
    work = Part(steps=("close-overlay", "make-root"), applets=_APPLETS, settings=settings)
    return make_initramfs(kernel, LAYERS, joined, host_program(*_PROGRAMS[facts["type"]]), work)


def main() -> None:
    """Do what standard input says; errors are reported as those of any command."""
    home = Home.at(Path(sys.argv[1]))
    facts = json.loads(sys.stdin.readline())
    overlay = None if facts["overlay"] is None else Path(facts["overlay"])
    target: ImageFile | StoredRef
    try:
        if "ref" in facts:
            target = resolve_ref(facts["ref"], home, at=facts["at"])
        else:
            target = inspect_file(Path(facts["file"]), raw=facts["raw"])
        with home.sharing(Path(facts["made"]).parent):
            make_root(target, overlay, facts, home)
    except P2pcloopError as err:
        sys.exit(report_error(err))


if __name__ == "__main__":
    main()
