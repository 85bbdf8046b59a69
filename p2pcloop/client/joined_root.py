"""An image with changed files, as one file system of the type that the image has."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from p2pcloop.client.interpreter import run_module
from p2pcloop.client.progress import growth_bar
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import FormatError, GuestError, NeedsPackageError, UsageError
from p2pcloop.formats.filesystem import PROBE_SIZE, describe, detect_filesystem, filesystem_size
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.api import never_missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.reader import DeviceReader
from p2pcloop.image.zeros import files_device
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

_BUFFER = 1 << 20

_VOLUME = slice(32808, 32840)
"""The volume identifier in the primary volume descriptor (ECMA-119, 8.4.7)."""

_CODECS = {1: "gzip", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
"""Of squashfs (kernel: fs/squashfs/squashfs_fs.h); a live CD's kernel may know its own alone."""


def describe_root(start: bytes, name: str) -> dict[str, Any]:
    """What a root must be made like: the type of the base, and what belongs to it.

    Args:
        start: the first `PROBE_SIZE` bytes of the base.
        name: for messages.

    Raises:
        UsageError: no root of this type is made.
    """
    kind = detect_filesystem(start)
    if kind == "iso9660":
        volume = start[_VOLUME].decode("ascii", "replace").rstrip(" \0")
        plain = "".join(c if c.isascii() and c.isprintable() else "_" for c in volume)
        return {"type": kind, "volume": plain or "ISOIMAGE"}
    if kind == "squashfs":
        block_size = int.from_bytes(start[12:16], "little")
        codec = _CODECS.get(int.from_bytes(start[20:22], "little"))
        if codec is not None and 4096 <= block_size <= 1 << 20:
            return {"type": kind, "codec": codec, "block_size": block_size}
    raise UsageError(
        tr(
            "changed files over {name} ({kind}) are not written as one root: only those"
            " over iso9660 and squashfs are",
            name=name,
            kind=describe(kind),
        ),
        hint="`p2pcloop publish` passes them on, and an overlay of blocks can be exported",
    )


@contextmanager
def open_joined_root(
    target: ImageFile | StoredRef, overlay: Path | None, start: bytes, home: Home, *, quiet: bool
) -> Iterator[tuple[BinaryIO, int]]:
    """Make the root, and yield a file to read it from, and its size.

    Args:
        target: the image; all of it is here.
        overlay: of mode files, or None.
        start: the first `PROBE_SIZE` bytes of the image.
        quiet: show no progress.

    Raises:
        UsageError: see `describe_root`.
        NeedsPackageError: xorriso or mksquashfs is not on this system.
        GuestError: it could not be made.
    """
    facts = describe_root(start, str(target.name)) | _identify(target)
    # A guest joins them, and this library knows no guests: p2pcloopd/guest/unseen/joined_root.py.
    module = "p2pcloopd.guest.unseen.joined_root"
    with home.staging() as folder:
        made = folder / "root"
        facts |= {"overlay": None if overlay is None else str(overlay.absolute())}
        line = json.dumps(facts | {"made": str(made)}) + "\n"
        with growth_bar("joining", made, quiet=quiet):
            done = run_module(module, str(home.root), line=line)
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip()
            said, _, hint = told.removeprefix("p2pcloop: ").partition("\n  hint: ")
            needs = done.returncode == NeedsPackageError.exit_code
            raise (NeedsPackageError if needs else GuestError)(said, hint=hint or None)
        with Overlay.open(made, image_id=None, read_only=True, mode="files") as held:
            device = files_device(held)
            claimed = filesystem_size(DeviceReader(device, never_missing).read(PROBE_SIZE) or b"")
            size = -(-(claimed or 0) // BLOCK_SIZE) * BLOCK_SIZE
            if not 0 < size <= held.image_size:
                raise FormatError("the guest has made no file system")
            only = ImageDevice(device.image, device.overlay, length=size)
            yield io.BufferedReader(DeviceReader(only, never_missing), _BUFFER), size


def _identify(target: ImageFile | StoredRef) -> dict[str, Any]:
    """How the program finds the image; a link with a secret is not for a list of processes."""
    if isinstance(target, StoredRef):
        return {"ref": target.link, "at": target.signed.manifest.version}
    return {"file": str(target.path), "raw": target.kind == "raw"}
