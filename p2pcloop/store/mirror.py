"""Writing a mirror: the files of formats/mirror.py in a directory that a web server may serve.

Every file is written under another name, synced and renamed, so readers of the directory see the
old file or the new one, whole. A file that names others is written after them: layers, metadata,
manifests, then the record. One process writes at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError, UsageError, storage_error
from p2pcloop.formats.link import MAX_LINK_LENGTH, Link, parse_link
from p2pcloop.formats.mirror import MirrorPath, RecordPath
from p2pcloop.formats.name import Name
from p2pcloop.formats.named import open_named, sync_names
from p2pcloop.formats.record import SignedRecord, open_record
from p2pcloop.store.file_facts import set_mode
from p2pcloop.store.in_place import HeldFile
from p2pcloop.words import tr

LINKS = "link.txt"
"""A line for each name: the link to its newest version in this mirror."""

_NEW = ".p2pcloop-new-"
_NEW_NAME = re.compile(re.escape(_NEW) + r"[0-9a-f]{16}")
_OURS = ("@*", "manifests", "torrents", "data/*")
"""The directories besides the root in which files are written; one may be left over there."""

_COPY_SIZE = 64 << 20
_MODE = 0o644
_MAX_LINKS_SIZE = 16 << 20


class MirrorDirectory:
    """A directory that is or becomes a mirror. Errors of the disk are `StorageError`."""

    def __init__(self, root: Path) -> None:
        """To be made by `open_mirror_directory`."""
        self.root = root

    def has(self, path: MirrorPath, size: int) -> bool:
        """Whether a file is there and has that size. Files appear whole."""
        where = self.root / str(path)
        return where.is_file() and where.stat().st_size == size

    def write(self, path: MirrorPath | str, data: bytes) -> None:
        """Write a small file; replace an old one."""
        where = self.root / str(path)
        try:
            if where.is_file() and where.read_bytes() == data:
                return
            with self._beside(where) as fd, open(fd, "wb", closefd=False) as file:
                file.write(data)
        except OSError as err:
            raise storage_error(tr("cannot write {where}", where=where), err) from err

    def copy(
        self,
        path: MirrorPath,
        source: HeldFile,
        size: int,
        still_here: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> None:
        """Write a copy of a file, which shares its blocks if the file system can do so.

        Not a hard link: the node may make holes in its file later, to free room.

        Args:
            still_here: called when all is copied; False if room was freed meanwhile.
            progress: called with the bytes of it that are copied.

        Raises:
            MismatchError: the file has another size, was not whole, or was written to meanwhile;
                no copy was made.
        """
        where = self.root / str(path)
        before = source.stamp()
        try:
            with self._beside(where) as fd:
                if before.size != size or _copy(source.fd, fd, size, progress):
                    raise MismatchError(
                        tr("{path} does not have {size} bytes", path=source.path, size=size),
                        hint="put the old file back",
                    )
                if not still_here() or source.stamp() != before:
                    raise MismatchError(
                        tr(
                            "a part of {path} went away while it was copied, or changed",
                            path=source.path,
                        ),
                        hint="try again",
                    )
        except OSError as err:
            raise storage_error(
                tr("cannot copy {path} to {where}", path=source.path, where=where), err
            ) from err

    def try_to_write(self) -> None:
        """Write and delete a file: what the disk refuses is known before anything is fetched."""
        new = self.root / f"{_NEW}{secrets.token_hex(8)}"
        try:
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            new.unlink()
        except OSError as err:
            raise storage_error(tr("cannot write into {root}", root=self.root), err) from err

    def check(self, signed: SignedRecord) -> None:
        """Refuse a record that is older than the one that is there, or another of its version.

        Raises:
            MismatchError: it is.
            FormatError: the file that is there is no record.
        """
        where = self.root / str(RecordPath(signed.record.name))
        try:
            known = open_record(_read_own(where)).record
        except FileNotFoundError:
            return
        except OSError as err:
            raise storage_error(tr("cannot read {where}", where=where), err) from err
        except FormatError as err:
            raise FormatError(
                tr("{where} is no record: {err}", where=where, err=err), hint="move it away"
            ) from err
        new = signed.record
        if new.version < known.version or (
            new.version == known.version and new.manifest_id != known.manifest_id
        ):
            raise MismatchError(
                tr(
                    "{root} has version {version} of {known} already, manifest {manifest_id}; this"
                    " is version {version2}, manifest {manifest_id2}",
                    root=self.root,
                    version=known.version,
                    known=known.name,
                    manifest_id=known.manifest_id.hex(),
                    version2=new.version,
                    manifest_id2=new.manifest_id.hex(),
                ),
                hint="a name never goes back: take another directory",
            )

    def urls(self, name: Name) -> tuple[str, ...]:
        """The URLs of servers that have all of an image, by `link.txt`: mirrors and web seeds.

        Raises:
            FormatError, UsageError: it is damaged, or cannot be read.
        """
        return tuple(
            base
            for link in self._links()
            if link.name == name
            for base in link.mirrors
            if web_seed(base) in link.web_seeds
        )

    def write_link(self, link: Link) -> None:
        """Put a link, without its secret, into `link.txt`; it replaces the link of the same name.

        Raises:
            FormatError, UsageError: as of `urls`.
        """
        others = [each for each in self._links() if each.name != link.name]
        text = "".join(f"{each.public()}\n" for each in [*others, link])
        self.write(LINKS, text.encode())

    def _links(self) -> list[Link]:
        where = self.root / LINKS
        try:
            lines = _read_own(where, _MAX_LINKS_SIZE).decode().splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as err:
            why = err.strerror if isinstance(err, OSError) else err
            raise UsageError(
                tr("{where} cannot be read: {why}", where=where, why=why), hint="move it away"
            ) from err
        try:
            return [parse_link(line[: MAX_LINK_LENGTH + 1]) for line in lines if line]
        except (FormatError, UsageError) as err:
            raise UsageError(
                tr("{where} holds a line that is no link: {err}", where=where, err=err),
                hint="move it away, or take it out",
            ) from err

    @contextmanager
    def _beside(self, where: Path) -> Iterator[int]:
        """A new file, which gets its name, durably, when the context ends without an error.

        It is locked while it is being written.
        """
        _make_folder(where.parent)
        new = where.with_name(f"{_NEW}{secrets.token_hex(8)}")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield fd
            set_mode(fd, _MODE)  # the web server may run as any user
            os.fsync(fd)
            new.replace(where)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        sync_names(where.parent)


@contextmanager
def open_mirror_directory(root: Path) -> Iterator[MirrorDirectory]:
    """Make the directory if it is not there, and lock it for writing.

    Raises:
        StorageError: the system refused.
        UsageError: it is not a directory.
    """

    def open_root() -> int:
        root.mkdir(parents=True, exist_ok=True)
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    try:
        fd = open_named(open_root, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX), root)
    except (FileExistsError, NotADirectoryError) as err:
        raise UsageError(tr("{root} is not a directory", root=root), hint="choose another") from err
    except OSError as err:
        raise storage_error(tr("cannot use {root}", root=root), err) from err
    try:
        _clear(root)
        yield MirrorDirectory(root)
    finally:
        os.close(fd)


def _clear(root: Path) -> None:
    """Delete files that a killed process of ours left, and no others.

    They are recognised by name, place, owner and kind; a locked one is being written.
    """
    inner = (path for pattern in _OURS for path in root.glob(pattern) if _is_folder(path))
    for directory in (root, *inner):
        for left in directory.iterdir():
            if _NEW_NAME.fullmatch(left.name):
                _delete_unlocked(left)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as err:  # a file, or a link that leads nowhere
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from err


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _delete_unlocked(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # a link, or not ours to read
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _read_own(where: Path, limit: int = -1) -> bytes:
    """The content of a file of the mirror; never waits at a pipe in its place.

    Raises:
        UsageError: it is no regular file.
        OSError: the system refused.
    """
    with open(os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise UsageError(tr("{where} is a pipe, and no file", where=where), hint="move it away")
        return file.read(limit)


def web_seed(base: str) -> str:
    """The URL of the web seed (BEP 19) that a mirror is; `url` ends in "/"."""
    return f"{base}data/"


def _copy(source: int, target: int, size: int, progress: Callable[[int], None]) -> int:
    """Copy a file to an empty one; return how many bytes were missing."""
    done = 0
    while done < size:
        length = min(size - done, _COPY_SIZE)
        try:
            copied = os.copy_file_range(source, target, length, done)
        except OSError as err:
            if err.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            copied = os.sendfile(target, source, done, length)
        if not copied:
            break
        done += copied
        progress(done)
    return size - done
