"""The writable layer of a union file system, as a directory of this machine, on its way to a guest.

It becomes a tar file (pax, as GNU tar reads it) with owners, hard links, device nodes and extended
attributes. Links are not followed, and other file systems below it are left out. What overlayfs
notes in attributes (kernel: Documentation/filesystems/overlayfs.rst) gets the names that it has in
a mount by root; what only belongs to the place where it was made is left out.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from p2pcloop.errors import MismatchError, StorageError, UsageError, storage_error
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

_CHUNK = 1 << 16
_END = bytes(1024)
_OVERLAYS = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")
"""Begin the attributes of overlayfs, of its mounts by ordinary users, and of fuse-overlayfs."""

_OPAQUE = "trusted.overlay.opaque"
_ELSEWHERE = ("redirect", "metacopy")
"""Attributes of what is nothing without the directories that the overlay was made on."""

_LAYERS = ("upper", "rw")
_XATTR = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class _Entry:
    """A name of the layer.

    Attributes:
        name: its path in the tar file.
        place: where it is read, by way of an open directory.
        found: its status, of a link that of the link itself.
    """

    name: str
    place: str
    found: os.stat_result


def layer_of(folder: Path) -> Path:
    """The layer in a directory: `upper` or `rw` beside overlayfs's own `work`, or all of it."""
    for name in _LAYERS:
        if (folder / "work").is_dir() and (folder / name).is_dir():
            return folder / name
    return folder


class UnionTree:
    """Packs a layer.

    Attributes:
        deletions: how many names it deletes as overlayfs does; known at the end.
    """

    def __init__(self, top: Path, leave_out: Callable[[str], None]) -> None:
        """`leave_out` is told what is left out, and why."""
        self.deletions = 0
        self._top = top
        self._leave_out = leave_out
        self._seen: dict[tuple[int, int], str] = {}

    def pack(self) -> Iterator[bytes]:
        """Yield the tar file, in pieces of at most 64 KiB and a header.

        Raises:
            UsageError: the layer is nothing without the directories that it was made on.
            MismatchError: a file became shorter meanwhile.
            StorageError: it cannot be read.
        """
        try:
            for entry in self._entries():
                try:
                    yield from self._member(entry)
                except OSError as err:
                    raise _not_read(f"{self._top}/{entry.name}", err) from err
            yield _END
        except OSError as err:
            raise _not_read(os.fsdecode(err.filename or self._top), err) from err

    def _entries(self) -> Iterator[_Entry]:
        """All names, each directory before what is in it."""

        def refuse(error: OSError) -> None:
            raise error

        top = os.fsencode(self._top)
        device = self._top.stat().st_dev
        for folder, folders, files, fd in os.fwalk(top, onerror=refuse):
            below = os.path.relpath(folder, top)
            for name in sorted(folders + files):
                path = os.fsdecode(os.path.normpath(os.path.join(below, name)))  # noqa: PTH118
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_dev != device:
                    self._leave_out(tr("{path}: it is another file system", path=path))
                    if name in folders:
                        folders.remove(name)
                    continue
                yield _Entry(path, f"/proc/self/fd/{fd}/{os.fsdecode(name)}", found)

    def _member(self, entry: _Entry) -> Iterator[bytes]:
        found, mode = entry.found, entry.found.st_mode
        info = tarfile.TarInfo(entry.name)
        info.mode, info.uid, info.gid = stat.S_IMODE(mode), found.st_uid, found.st_gid
        info.mtime = found.st_mtime_ns // 1_000_000_000
        attributes = _attributes(entry)
        if attributes.pop("whiteout", None) is not None:
            mode = stat.S_IFCHR
        if stat.S_ISREG(mode) and self._is_link(entry, info):
            yield _header(info, {})
        elif stat.S_ISREG(mode):
            info.size = found.st_size
            yield _header(info, attributes)
            yield from _content(entry, info.size)
            yield bytes(-info.size % tarfile.BLOCKSIZE)
        elif self._describe(info, entry, mode):
            yield _header(info, attributes)

    def _is_link(self, entry: _Entry, info: tarfile.TarInfo) -> bool:
        """Whether it is one more name of a file that was packed."""
        if entry.found.st_nlink < 2:
            return False
        first = self._seen.setdefault((entry.found.st_dev, entry.found.st_ino), entry.name)
        info.type, info.linkname = tarfile.LNKTYPE, first
        if first == entry.name:
            info.type, info.linkname = tarfile.REGTYPE, ""
        return first != entry.name

    def _describe(self, info: tarfile.TarInfo, entry: _Entry, mode: int) -> bool:
        """Complete the header of what has no content; False of what a tar file does not keep."""
        if stat.S_ISDIR(mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(mode):
            info.type, info.linkname = tarfile.SYMTYPE, str(Path(entry.place).readlink())
        elif stat.S_ISFIFO(mode):
            info.type = tarfile.FIFOTYPE
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
            number = 0 if stat.S_ISREG(entry.found.st_mode) else entry.found.st_rdev
            info.devmajor, info.devminor = os.major(number), os.minor(number)
            self.deletions += stat.S_ISCHR(mode) and number == 0
        else:
            self._leave_out(tr("{entry}: it is a socket", entry=entry.name))
            return False
        return True


def _attributes(entry: _Entry) -> dict[str, bytes]:
    """The extended attributes for the guest; `whiteout` of a file that overlayfs deletes by one.

    Raises:
        UsageError: the entry's content or place is that of another one.
    """
    kept: dict[str, bytes] = {}
    for name in _listed(entry.place):
        value = b""
        with suppress(OSError):  # it went, or is not for this user
            value = os.getxattr(entry.place, name, follow_symlinks=False)
        own = next((name.removeprefix(each) for each in _OVERLAYS if name.startswith(each)), None)
        if own is None:
            kept[_XATTR + name] = value
        elif own in _ELSEWHERE:
            raise UsageError(
                tr(
                    "/{entry} was changed with {own} of overlayfs, and is nothing without the"
                    " directories below it",
                    entry=entry.name,
                    own=own,
                ),
                hint="mount the overlay, and copy what you changed out of it: that can be imported",
            )
        elif own == "opaque" and value == b"y":
            kept[_XATTR + _OPAQUE] = value
        elif own == "whiteout":
            kept["whiteout"] = value
    return kept


def _listed(place: str) -> list[str]:
    try:
        return os.listxattr(place, follow_symlinks=False)
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.EACCES, errno.EPERM):
            return []
        raise


def _header(info: tarfile.TarInfo, attributes: dict[str, bytes]) -> bytes:
    info.pax_headers = {
        name: value.decode("utf-8", "surrogateescape") for name, value in attributes.items()
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(entry: _Entry, size: int) -> Iterator[bytes]:
    # What was a file may be a link or a pipe by now.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(entry.place, flags), "rb", buffering=0) as file:
        while size:
            data = file.read(min(size, _CHUNK))
            if not data:
                raise MismatchError(
                    tr("/{entry} became shorter while it was read", entry=entry.name),
                    hint="end what uses it, and import it again",
                )
            size -= len(data)
            yield data


def _not_read(path: str, err: OSError) -> StorageError:
    hint = None
    if err.errno in (errno.EACCES, errno.EPERM):
        hint = tr(
            "run it as root; or give the file system itself (knoppix-data.img, or the"
            " partition, not mounted), which is read without root"
        )
    return storage_error(tr("cannot read {path}", path=path), err, hint=hint)
