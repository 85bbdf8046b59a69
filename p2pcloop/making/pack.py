"""Writes the layer of an image file as a torrent's content: `data/<id>/index` and `.../pack`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from p2pcloop.errors import storage_error
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.index import IndexHeader, open_index
from p2pcloop.making.build import (
    Progress,
    Read,
    can_stay,
    check_image_size,
    index_cloop,
    pack_raw,
)
from p2pcloop.making.local import ImageFile
from p2pcloop.making.targets import FileTarget
from p2pcloop.units import BLOCK_SIZE


def write_layer(file: ImageFile, staging: Path, progress: Progress) -> tuple[IndexHeader, str]:
    """Write index and pack below `staging`; a cloop is linked to, not copied, where it can be.

    The folder's name comes from the layer's id, so that equal content makes equal torrents.

    Returns:
        The index's header, and a remark for the user ("" where all is as expected).

    Raises:
        FormatError: the image is damaged.
        UsageError: it is empty or too large.
        StorageError: the disk refused.
    """
    try:
        return _write_layer(file, staging, progress)
    except OSError as err:
        raise storage_error(f"cannot use {err.filename or staging}", err) from err


def _write_layer(file: ImageFile, staging: Path, progress: Progress) -> tuple[IndexHeader, str]:
    with ExitStack() as stack:
        read, size, note = _reader(file, stack)
        work = begin_layer(staging)
        if read is None:
            cloop = stack.enter_context(open_cloop(file.path))
            index = index_cloop(cloop, file.size, progress)
            (work / "pack").symlink_to(file.path)
        else:
            with (work / "pack").open("wb") as pack:
                index = pack_raw(read, size, pack, progress)
    return finish_layer(staging, index), note


def begin_layer(staging: Path) -> Path:
    """Make the folder in which a layer's pack is written, below `staging`."""
    work = staging / "data" / "work"
    work.mkdir(parents=True)
    return work


def finish_layer(staging: Path, index: bytes) -> IndexHeader:
    """Put the index to the pack and give the folder its name; return the index's header."""
    work = staging / "data" / "work"
    (work / "index").write_bytes(index)
    header = open_index(index)
    work.rename(staging / "data" / header.layer_id.hex()[:32])
    return header


def read_start(file: ImageFile, length: int) -> bytes:
    """Return the first bytes of the device in an image file, fewer where it is shorter."""
    with ExitStack() as stack:
        if file.kind == "cloop":
            cloop = stack.enter_context(open_cloop(file.path))
            return cloop.read(0, min(length, cloop.index.header.size))
        with file.path.open("rb") as raw:
            return raw.read(length)


def device_size(file: ImageFile) -> int:
    """Return the bytes of the device in an image file, a multiple of 4096.

    Raises:
        FormatError: a cloop that is damaged.
        UsageError: the image is empty or too large.
    """
    if file.kind != "cloop":
        return check_image_size(file.size)
    with open_cloop(file.path) as cloop:
        return check_image_size(cloop.index.header.size)


def _reader(file: ImageFile, stack: ExitStack) -> tuple[Read | None, int, str]:
    """How to read an image that has to be packed, its size and why; None for one that need not."""
    if file.kind == "cloop":
        cloop = stack.enter_context(open_cloop(file.path))
        if can_stay(cloop):
            return None, 0, ""
        header = cloop.index.header
        note = (
            f"{file.path} has blocks of {header.block_size} bytes, which are not whole blocks of "
            "4 KiB: it is repacked into the node's home"
        )
        return cloop.read, header.size, note
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    note = ""
    if file.size % BLOCK_SIZE:
        note = (
            f"{file.path} has {file.size} bytes, not a multiple of 4 KiB: the device ends in zeros"
        )
    return lambda offset, length: os.pread(fd, length, offset), file.size, note


def open_target(file: ImageFile, stack: ExitStack) -> FileTarget:
    """Open an image file as what a delta leads to.

    Raises:
        FormatError: a cloop that is damaged.
        UsageError: the image is empty or too large.
    """
    if file.kind == "cloop":
        cloop = stack.enter_context(open_cloop(file.path))
        return FileTarget(cloop.read, cloop.index.header.size)
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return FileTarget(lambda offset, length: os.pread(fd, length, offset), file.size)
