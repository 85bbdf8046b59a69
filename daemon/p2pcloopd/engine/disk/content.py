"""The files of a torrent as one run of bytes: reading, hashing, comparing, syncing.

All but `read_now` blocks on the disk and is meant for a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

from p2pcloop.errors import FormatError, StorageError, storage_error
from p2pcloop.formats.named import sync_names
from p2pcloop.parallel import ordered_map
from p2pcloop.store.in_place import HeldFile, Stamp
from p2pcloop.words import tr
from p2pcloopd.engine.disk.metainfo import HASH_SIZE, Metainfo, TorrentLayout, piece_length_for

_READ_SIZE = 1 << 20
"""Bytes that are read and hashed at once: so many that to hand them to a thread costs little."""

_MANY_RUNS = 16
"""From so many reads on, pieces are compared on all processors; fewer take 10 ms."""


class Content:
    """Reads a torrent's content below `root` (the directory that libtorrent saves into)."""

    def __init__(self, root: Path, layout: TorrentLayout) -> None:
        self._root = root
        self._layout = layout
        self._held: Mapping[Path, HeldFile] = {}
        self._files: list[tuple[Path, int, int]] = []
        start = 0
        for path, size in layout.files:
            self._files.append((root / path, start, size))
            start += size

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [path for path, _, _ in self._files]

    def foreign(self) -> list[Path]:
        """The files that lie elsewhere, by symbolic link: read, and never written."""
        return [path for path in self.paths if path.is_symlink()]

    def find(self) -> dict[Path, HeldFile]:
        """Open the files that lie elsewhere, by their paths here, under their names.

        Raises:
            StorageError: one is gone, is no regular file, or its path leads through a link.
        """
        return {path: HeldFile(path.readlink()) for path in self.foreign()}

    def hold(self, files: Mapping[Path, HeldFile]) -> None:
        """Read these from now on; without them, nothing is read of what lies elsewhere."""
        self._held = files

    def stamps(self, files: Mapping[Path, HeldFile] | None = None) -> dict[str, Stamp]:
        """What files that lie elsewhere are, by their paths below `root`; else those in use."""
        files = self._held if files is None else files
        return {str(path.relative_to(self._root)): held.stamp() for path, held in files.items()}

    def all_stamps(self) -> list[Stamp | None]:
        """What every file is; None for one that is not there."""
        held = self._held
        return [_stamp(held.get(path), path) for path in self.paths]

    def held(self) -> dict[int, HeldFile]:
        """The open files that lie elsewhere, by their number among the files."""
        return {
            number: held for number, path in enumerate(self.paths) if (held := self._held.get(path))
        }

    def sizes(self) -> dict[str, int]:
        """What the sizes of the files must be, by their paths below `root`."""
        return {str(path): size for path, size in self._layout.files}

    def lacking(self) -> Iterator[tuple[int, int]]:
        """The ranges of the content, offset and length, for which files are too short, or gone."""
        for path, start, size in self._files:
            try:
                there = path.stat().st_size
            except OSError:
                there = 0
            if there < size:
                yield start + there, size - there

    def whole(self) -> bool:
        """Whether every file is there and has its size."""
        try:
            return all(path.stat().st_size == size for path, _, size in self._files)
        except OSError:
            return False

    def read(self, offset: int, length: int) -> bytes:
        """Read from the files.

        Raises:
            StorageError: a file is missing, shorter than it must be, or cannot be read.
        """
        held = self._held
        return b"".join(
            _read_file(held.get(path), path, *at) for path, *at in self.parts(offset, length)
        )

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Read what the system has in memory, on any thread; None where it has not, or refuses."""
        held = self._held
        try:
            return b"".join(
                _read_cached(held.get(path), path, *at) for path, *at in self.parts(offset, length)
            )
        except OSError:
            return None  # `read` tells why

    def parts(self, offset: int, length: int) -> Iterator[tuple[Path, int, int]]:
        """The parts of files that a range consists of: path, offset in the file, bytes."""
        for path, start, size in self._files:
            first, last = max(offset, start), min(offset + length, start + size)
            if first < last:
                yield path, first - start, last - first

    def read_piece(self, piece: int) -> bytes:
        """Read a whole piece. Errors as for `read`."""
        return self.read(piece * self._layout.piece_length, self._layout.piece_size(piece))

    def wrong_pieces(self, meta: Metainfo, pieces: Iterable[int]) -> list[int]:
        """Those of `pieces` whose bytes are missing or do not match their hash.

        Many are compared on all processors.

        Raises:
            StorageError: a file is there but cannot be read.
        """
        runs = list(self.runs(pieces))
        compare = partial(self._wrong_of, meta)
        found = map(compare, runs) if len(runs) < _MANY_RUNS else ordered_map(compare, runs)
        return list(chain.from_iterable(found))

    def _wrong_of(self, meta: Metainfo, run: range) -> list[int]:
        try:
            data = self._read_run(run)
        except StorageError as err:
            if err.errno not in (errno.ENOENT, errno.ENODATA):
                raise
            if len(run) == 1:
                return list(run)
            return [piece for each in run for piece in self._wrong_of(meta, range(each, each + 1))]
        return [piece for piece, part in data if not meta.matches(piece, part)]

    def hashes_of(self, run: range) -> bytes:
        """The SHA-1 of each piece of a run, end to end. Errors as for `read`."""
        return b"".join(
            hashlib.sha1(data, usedforsecurity=False).digest() for _, data in self._read_run(run)
        )

    def runs(self, pieces: Iterable[int]) -> Iterator[range]:
        """Cut pieces into runs of pieces that follow each other, to be read at once."""
        most = max(1, _READ_SIZE // self._layout.piece_length)
        run = range(0)
        for piece in pieces:
            if run and (piece != run.stop or len(run) == most):
                yield run
                run = range(0)
            run = range(run.start if run else piece, piece + 1)
        if run:
            yield run

    def _read_run(self, run: range) -> Iterator[tuple[int, memoryview]]:
        """Read a run of pieces: each with its bytes. Errors as for `read`."""
        size = self._layout.piece_length
        start = run.start * size
        length = min(run.stop * size, self._layout.total_size) - start
        data = memoryview(self.read(start, length))
        return zip(run, (data[at : at + size] for at in range(0, length, size)), strict=True)

    def sync(self) -> None:
        """Make the data of all files durable, their names too.

        Raises:
            StorageError: the system refused.
        """
        for path in self.paths:
            if path.is_symlink() or not path.exists():
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            except OSError as err:
                raise storage_error(tr("cannot sync {path}", path=path), err) from err

    def sync_names(self, top: Path) -> None:
        """Make the directories between `top` and the files durable."""
        directories = {top}
        for path in self.paths:
            directories.update(p for p in path.parents if p.is_relative_to(top) and p.is_dir())
        try:
            for directory in directories:
                sync_names(directory)
        except OSError as err:
            raise storage_error(tr("cannot sync {top}", top=top), err) from err


@contextmanager
def _opened(held: HeldFile | None, path: Path) -> Iterator[int]:
    """A file that is held, else one of ours: what lies elsewhere is never opened by its name."""
    if held is not None:
        yield held.fd
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def _stamp(held: HeldFile | None, path: Path) -> Stamp | None:
    try:
        return Stamp.of(path.lstat() if held is None else os.fstat(held.fd))
    except OSError:
        return None


def _read_cached(held: HeldFile | None, path: Path, offset: int, length: int) -> bytes:
    data = bytearray(length)
    with _opened(held, path) as fd:
        # Short where not all of it is in the cache (preadv2(2)).
        if os.preadv(fd, [data], offset, os.RWF_NOWAIT) != length:
            raise BlockingIOError(errno.EAGAIN, "not in the cache", str(path))
    return bytes(data)


def _read_file(held: HeldFile | None, path: Path, offset: int, length: int) -> bytes:
    try:
        with _opened(held, path) as fd:
            data = os.pread(fd, length, offset)
            while data and len(data) < length:
                more = os.pread(fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
    except OSError as err:
        raise storage_error(
            tr("cannot read {path}", path=held.path if held else path), err
        ) from err
    if len(data) < length:
        raise StorageError(
            tr("{path} is shorter than its torrent says", path=path), errno=errno.ENODATA
        )
    return data


def links(root: Path) -> dict[Path, Path]:
    """The symbolic links below `root`, by their path there, and where they lead."""
    return {p.relative_to(root): p.readlink() for p in root.rglob("*") if p.is_symlink()}


def scan(root: Path) -> TorrentLayout:
    """See what lies in `root`: one file or one directory of files, which becomes a torrent.

    Files come in the order of their names, so `index` comes before `pack`.

    Raises:
        FormatError: there is not exactly one entry, or nothing in it.
        StorageError: a file cannot be looked at.
    """
    try:
        entries = sorted(root.iterdir())
        if len(entries) != 1:
            raise FormatError(
                tr("{root} must hold exactly one file or directory to seed", root=root)
            )
        top = entries[0]
        found = sorted(p for p in top.rglob("*") if not p.is_dir()) if top.is_dir() else [top]
        files = tuple(
            (PurePosixPath(path.relative_to(root)), path.stat().st_size) for path in found
        )
    except OSError as err:
        raise storage_error(tr("cannot look at {root}", root=root), err) from err
    total = sum(size for _, size in files)
    if not total:
        raise FormatError(tr("{top} is empty: there is nothing to seed", top=top))
    return TorrentLayout(top.name, files, piece_length_for(total), total)


def hash_pieces(
    content: Content, layout: TorrentLayout, progress: Callable[[int, int], None]
) -> bytes:
    """Compute the SHA-1 of every piece, on all processors.

    Args:
        progress: called on this thread with (bytes hashed, bytes in all); what it raises ends the
            hashing.

    Raises:
        StorageError: a file cannot be read.
    """
    hashes = bytearray()
    runs = content.runs(range(layout.pieces))
    for digests in ordered_map(content.hashes_of, runs):
        hashes += digests
        done = len(hashes) // HASH_SIZE * layout.piece_length
        progress(min(done, layout.total_size), layout.total_size)
    return bytes(hashes)
