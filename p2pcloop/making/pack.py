"""Writing the layer of an image file as a torrent's content: `data/<id>/index` and `.../pack`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from p2pcloop.errors import storage_error
from p2pcloop.formats.boot_parameters import Root
from p2pcloop.formats.index import IndexHeader, open_index
from p2pcloop.making.build import Progress, check_image_size, pack_raw
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.opened import OpenImage
from p2pcloop.making.targets import FileTarget
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr


def write_layer(file: ImageFile, staging: Path, progress: Progress) -> tuple[IndexHeader, str]:
    """Write index and pack below `staging`. The pack of a file in place is a link to it.

    The folder's name comes from the layer's id, so that equal content makes equal torrents.

    Returns:
        The index's header, and a remark for the user ("" if there is none).

    Raises:
        FormatError: the image is damaged.
        UsageError: it is empty or too large.
        StorageError: the disk refused.
    """
    try:
        return _write_layer(file, staging, progress)
    except OSError as err:
        # Of a link the system names first where it leads, and that is the user's.
        named = err.filename2 or err.filename or staging
        raise storage_error(tr("cannot use {path}", path=named), err) from err


def _write_layer(file: ImageFile, staging: Path, progress: Progress) -> tuple[IndexHeader, str]:
    work = begin_layer(staging)
    with OpenImage(file.path, file.parts, file.name) as image:
        why = image.why_not_in_place() if file.can_stay else ""
        if file.can_stay and not why:
            index = image.index(file.size, progress)
            (work / "pack").symlink_to(file.path)
        else:
            with (work / "pack").open("wb") as pack:
                index = pack_raw(image.read, image.size, pack, progress, image.next_data)
    remark = tr("{why}: it is repacked into the node's home", why=why) if why else ""
    return finish_layer(staging, index), remark


def begin_layer(staging: Path) -> Path:
    """Make the folder in which a layer's pack is written, below `staging`."""
    work = staging / "data" / "work"
    work.mkdir(parents=True)
    return work


def finish_layer(staging: Path, index: bytes) -> IndexHeader:
    """Write the index beside the pack and rename the folder; return the index's header."""
    work = staging / "data" / "work"
    (work / "index").write_bytes(index)
    header = open_index(index)
    work.rename(staging / "data" / header.layer_id.hex()[:32])
    return header


def read_start(file: ImageFile, length: int) -> bytes:
    """Return the first bytes of the device in an image file; fewer if it is shorter."""
    with OpenImage(file.path, file.parts, file.name) as image:
        return image.read(0, min(length, image.size))


def device_size(file: ImageFile) -> int:
    """Return the bytes of the device in an image file, a multiple of 4096.

    Raises:
        FormatError: a cloop that is damaged.
        UsageError: the image is empty or too large.
    """
    with OpenImage(file.path, file.parts, file.name) as image:
        return check_image_size(image.size)


def odd_length(file: ImageFile) -> int:
    """Return the bytes of the device in an image file if they are no multiple of 4096, else 0.

    Raises:
        FormatError: a cloop that is damaged.
    """
    with OpenImage(file.path, file.parts, file.name) as image:
        return image.size if image.size % BLOCK_SIZE else 0


def device_roots(file: ImageFile) -> tuple[Root, ...]:
    """Return the place of each file system on the device in an image file; see `OpenImage`.

    Raises:
        FormatError: a cloop that is damaged.
    """
    if len(file.parts) == 1:
        return ()  # as for `OpenImage`, but without reading the index of a cloop
    with OpenImage(file.path, file.parts, file.name) as image:
        return image.roots


def open_target(file: ImageFile, stack: ExitStack) -> FileTarget:
    """Open an image file as the target of a delta.

    Raises:
        FormatError: a cloop that is damaged.
        UsageError: the image is empty or too large.
    """
    image = stack.enter_context(OpenImage(file.path, file.parts, file.name))
    return FileTarget(image.read, image.size, image.next_data)
