"""Files and directories of the host, on their way into a guest and out of it.

What comes out of a guest is not trusted: nothing is written outside the target, whatever names and
links arrive, and in whatever order. Each directory on the way is opened by itself, and none through
a symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.tar import Kind, Member, TarReader
from p2pcloop.store.file_facts import set_mode, set_time
from p2pcloop.words import tr

_CHUNK = 1 << 16
_PERMISSIONS = 0o777
_LATEST = 1 << 33
"""Seconds of Unix time that every file system can keep, or bounds by itself."""

_MAX_DEPTH = 256
"""Directories in each other: all paths that were made are held until the end."""

_OWN = 0o700
_NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_END = bytes(1024)


def pack_tree(top: Path, leave_out: Callable[[str], None]) -> Iterator[bytes]:
    """Yield a tar file of what lies below a directory, in pieces of at most 64 KiB and a header.

    The directory itself is no part of it. All of it belongs to root. Links are kept as links.
    Sockets and devices are left out.

    Args:
        top: the directory.
        leave_out: told what is left out, and why.

    Raises:
        MismatchError: a file became shorter meanwhile.
        OSError: the system refused.
    """
    pending = [top]
    while pending:
        directory = pending.pop()
        if directory != top:
            yield _header(directory, top, tarfile.DIRTYPE)
        for path in sorted(directory.iterdir()):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                pending.append(path)
            elif stat.S_ISLNK(mode):
                yield _header(path, top, tarfile.SYMTYPE, link=str(path.readlink()))
            elif stat.S_ISREG(mode):
                yield from _pack_file(path, top)
            else:
                leave_out(tr("{path}: it is no file, directory or link", path=path))
    yield _END


def directories_below(top: Path) -> Iterator[str]:
    """The paths of all directories below `top`, relative to it; links are not followed.

    Raises:
        OSError: the system refused.
    """

    def refuse(error: OSError) -> None:
        raise error

    for directory, names, _ in os.walk(top, onerror=refuse):
        below = os.path.relpath(directory, top)
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118  names may be no text
            if not os.path.islink(path):  # noqa: PTH114  as above
                yield os.path.normpath(os.path.join(below, name))  # noqa: PTH118  as above


def read_file(path: Path, size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of a file, in pieces of at most 64 KiB.

    Raises:
        MismatchError: it has become shorter.
        OSError: the system refused.
    """
    with open(path, "rb") as file:
        while size:
            data = file.read(min(size, _CHUNK))
            if not data:
                raise MismatchError(
                    tr("{path} became shorter while it was copied", path=path), hint="copy it again"
                )
            size -= len(data)
            yield data


def _pack_file(path: Path, top: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield _header(path, top, tarfile.REGTYPE, size=size)
    yield from read_file(path, size)
    if padding := -size % tarfile.BLOCKSIZE:
        yield bytes(padding)


def _header(path: Path, top: Path, kind: bytes, *, size: int = 0, link: str = "") -> bytes:
    found = path.lstat()
    info = tarfile.TarInfo("./" + str(path.relative_to(top)))
    info.type, info.size, info.linkname = kind, size, link
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


class Unpacker:
    """Writes a tar file of a stranger below a directory.

    Files replace what is there, but no directory. Directories may be there, and then stay as they
    are. Permissions and times of what is new are kept, set-id bits are not. Devices are left out.
    """

    def __init__(self, top: Path, leave_out: Callable[[str], None], *, is_new: bool) -> None:
        """Begin.

        Args:
            top: the directory; it exists.
            is_new: it was made for this, and gets permissions and time of the tar file's top.
            leave_out: told what is left out, and why.

        Raises:
            OSError: the system refused.
        """
        self._top = os.open(top, os.O_DIRECTORY | os.O_CLOEXEC)
        self._leave_out = leave_out
        self._reader = TarReader()
        self._file = -1
        self._remaining = 0
        self._member: Member | None = None
        self._made: set[tuple[bytes, ...]] = {()} if is_new else set()
        self._directories: dict[tuple[bytes, ...], Member] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            FormatError: they are no tar file, or one that would write elsewhere.
            OSError: the system refused.
        """
        for item in self._reader.feed(data):
            if isinstance(item, Member):
                self._begin(item)
            else:
                self._write(item)

    def finish(self) -> None:
        """Give the directories their permissions, once all has come.

        Raises:
            FormatError: the end is missing.
            OSError: the system refused.
        """
        if not self._reader.ended:
            raise FormatError("the end of a tar file is missing")
        for parts in sorted(self._made_directories(), key=len, reverse=True):
            member = self._directories[parts]
            with self._opened(parts) as fd:
                _set_time(fd, member)
                set_mode(fd, member.mode & _PERMISSIONS)

    def _made_directories(self) -> Iterator[tuple[bytes, ...]]:
        return (parts for parts in self._directories if parts in self._made)

    def close(self) -> None:
        """Close what is open."""
        self._end_file()
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    def _begin(self, member: Member) -> None:
        parts = _parts(member.name)
        if member.kind is Kind.DIRECTORY:
            with self._opened(parts, make=True):
                self._directories[parts] = member
            return
        if not parts:
            raise FormatError("a tar file has its own top as a file")
        with self._opened(parts[:-1], make=True) as folder:
            self._make(member, parts, folder)

    def _make(self, member: Member, parts: tuple[bytes, ...], folder: int) -> None:
        name = parts[-1]
        if member.kind not in (Kind.FILE, Kind.SYMLINK, Kind.HARD_LINK):
            self._leave_out(tr("{parts}: it is a device or a pipe", parts=_shown(parts)))
            return
        source = _parts(member.link) if member.kind is Kind.HARD_LINK else ()
        if member.kind is Kind.HARD_LINK and source not in self._made:
            raise FormatError(
                tr("a tar file links {parts} to what is not in it", parts=_shown(parts))
            )
        if source == parts:
            return
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        match member.kind:
            case Kind.SYMLINK:
                os.symlink(member.link, name, dir_fd=folder)
            case Kind.HARD_LINK:
                with self._opened(source[:-1]) as other:
                    os.link(
                        source[-1],
                        name,
                        src_dir_fd=other,
                        dst_dir_fd=folder,
                        follow_symlinks=False,
                    )
            case _:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
                self._file = os.open(name, flags, 0o600, dir_fd=folder)
                self._member, self._remaining = member, member.size
                if not member.size:
                    self._end_file()
        self._made.add(parts)

    def _write(self, data: bytes) -> None:
        self._remaining -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        if not self._remaining:
            self._end_file()

    def _end_file(self) -> None:
        if self._file < 0:
            return
        fd, self._file = self._file, -1
        try:
            if self._member is not None and not self._remaining:
                _set_time(fd, self._member)
                set_mode(fd, self._member.mode & _PERMISSIONS)
        finally:
            os.close(fd)

    @contextmanager
    def _opened(self, parts: tuple[bytes, ...], *, make: bool = False) -> Iterator[int]:
        """A directory below the top, reached without a symbolic link."""
        here = os.dup(self._top)
        try:
            for depth, part in enumerate(parts):
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, _OWN, dir_fd=here)
                        self._made.add(parts[: depth + 1])
                try:
                    there = os.open(part, os.O_DIRECTORY | _NO_FOLLOW, dir_fd=here)
                except OSError as err:
                    if err.errno in (errno.ENOTDIR, errno.ELOOP):
                        raise FileExistsError(
                            errno.EEXIST, tr("it is no directory"), _shown(parts[: depth + 1])
                        ) from err
                    raise
                os.close(here)
                here = there
            yield here
        finally:
            os.close(here)


def _set_time(fd: int, member: Member) -> None:
    set_time(fd, min(member.modified, _LATEST))


def _parts(name: bytes) -> tuple[bytes, ...]:
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts or name.startswith(b"/"):
        raise FormatError(tr("a tar file of the guest would write to {name!r}", name=name[:200]))
    if len(parts) > _MAX_DEPTH:
        raise FormatError(
            tr(
                "a tar file of the guest has {parts_count} directories in each other",
                parts_count=len(parts),
            )
        )
    return parts


def _shown(parts: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(parts))
