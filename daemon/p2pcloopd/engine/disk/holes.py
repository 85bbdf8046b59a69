"""The disk space of a torrent's files, and freeing the stretches that hold no piece.

Everything here blocks on the disk and is meant for a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from stat import S_ISREG

from p2pcloop.errors import storage_error
from p2pcloop.formats.holes import next_data, next_hole, punch_hole
from p2pcloop.words import tr
from p2pcloopd.engine.disk.content import Content
from p2pcloopd.engine.disk.metainfo import TorrentLayout

_STAT_UNIT = 512  # stat(2): st_blocks
_DISK_BLOCK = 4096


def give_back(content: Content, layout: TorrentLayout, here: Sequence[bool]) -> None:
    """Make holes where no piece is that is here, in files that are ours.

    A file system that knows no holes gives back what lies behind the last piece that is here.

    Args:
        here: one item a piece.

    Raises:
        StorageError: the disk refused.
    """
    for start, end in _runs(layout, here, wanted=False):
        for path, offset, length in content.parts(start, end - start):
            _punch(path, offset, length)


def written(content: Content, layout: TorrentLayout) -> Iterator[tuple[int, int]]:
    """Runs of the content, first byte and end, in which files that are ours have no hole.

    Raises:
        StorageError: the disk refused.
    """
    run = start = 0
    for path, (_, size) in zip(content.paths, layout.files, strict=True):
        end = start
        for first, last in _data(path):
            if start + first > end:
                yield run, end
                run = start + first
            end = start + min(last, size)
        start += size
        if end < start:
            yield run, end
            run = start
    yield run, start


def _data(path: Path) -> Iterator[tuple[int, int]]:
    """Where a file is no hole: first byte and end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as err:
        raise storage_error(tr("cannot open {path}", path=path), err) from err
    try:
        size, end = os.fstat(fd).st_size, 0
        while (offset := next_data(fd, end)) < size:
            end = next_hole(fd, offset)
            yield offset, end
    except OSError as err:
        raise storage_error(tr("cannot look for holes in {path}", path=path), err) from err
    finally:
        os.close(fd)


def allocated(content: Content) -> int:
    """Bytes on the disk that the files take, but for those that lie elsewhere.

    Raises:
        StorageError: the disk refused.
    """
    return sum(_STAT_UNIT * status.st_blocks for status in _own(content))


def is_linked(content: Content) -> bool:
    """Whether a file of ours has another name: what is written to it would change that, too."""
    return any(status.st_nlink > 1 for status in _own(content))


def needed(content: Content, layout: TorrentLayout, here: Sequence[bool]) -> int:
    """Bytes on the disk that the pieces that are here need, in files that are ours."""
    total = 0
    for start, end in _runs(layout, here, wanted=True):
        for path, offset, length in content.parts(start, end - start):
            if not path.is_symlink():
                last = -(-(offset + length) // _DISK_BLOCK)
                total += (last - offset // _DISK_BLOCK) * _DISK_BLOCK
    return total


def _runs(
    layout: TorrentLayout, here: Sequence[bool], *, wanted: bool
) -> Iterator[tuple[int, int]]:
    """Runs of pieces that are here, or are not: first byte and end."""
    piece = 0
    for present, group in groupby(here):
        first, piece = piece, piece + len(list(group))
        if present == wanted:
            length = layout.piece_length
            yield first * length, min(piece * length, layout.total_size)


def _own(content: Content) -> Iterator[os.stat_result]:
    for path in content.paths:
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as err:
            raise storage_error(tr("cannot look at {path}", path=path), err) from err
        if S_ISREG(status.st_mode):
            yield status


def _punch(path: Path, offset: int, length: int) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as err:
        raise storage_error(tr("cannot open {path}", path=path), err) from err
    try:
        size = os.fstat(fd).st_size
        at_end = offset + length >= size
        # A block that a range ends within stays, unless the file ends there, too.
        if not punch_hole(fd, offset, length + _DISK_BLOCK * at_end) and at_end:
            os.ftruncate(fd, min(offset, size))
    except OSError as err:
        raise storage_error(tr("cannot give back room of {path}", path=path), err) from err
    finally:
        os.close(fd)
