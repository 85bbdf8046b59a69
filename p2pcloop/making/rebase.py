"""Moving a files overlay to another version of its image: the conflicts of its files.

A guest reads the file systems (p2pcloopd/guest/unseen/comparing.py) and writes a list to a tar
file. This module reads and checks the whole list, and compares it. Paths are bytes, relative to the
root.
"""

from __future__ import annotations

import re
import stat
import tarfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import IO

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAX_ANSWER = 1 << 30
"""Bytes of the tar file: some four million files."""

_STAT = re.compile(rb"([0-9a-f]+) (\d+) (\d+) ([0-9a-f]+) ([0-9a-f]+) (\d+) \.//")
_HASH = re.compile(rb"([0-9a-f]{64})  \.//")


@dataclass(frozen=True, slots=True)
class Entry:
    """The file at a path.

    Attributes:
        mode: type and permissions, as of stat(2).
        uid, gid: its owner.
        device: major and minor number of a device, else zeros.
        digest: SHA-256 of a file's content or of a link's target in hexadecimal, if it was asked
            for.
    """

    mode: int
    uid: int
    gid: int
    device: tuple[int, int]
    digest: bytes = b""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """Whether it is overlayfs's mark of a deleted file: a character device 0, 0."""
        return stat.S_ISCHR(self.mode) and self.device == (0, 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The files that the guest listed.

    Attributes:
        upper: the files of the overlay; with a digest if the new image has that path, too.
        opaque: directories of the overlay that hide those of the images.
        old, new: the files of the two images at the paths of the overlay, and below opaque ones.
    """

    upper: Mapping[bytes, Entry]
    opaque: frozenset[bytes]
    old: Mapping[bytes, Entry]
    new: Mapping[bytes, Entry]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that both sides changed.

    Attributes:
        path: of the file.
        ours: the change of the overlay: "added", "changed", "deleted" or "replaced".
        theirs: the change of the newer image.
        adopt: only owner or mode of a directory are in question: the new image's entry.
    """

    path: bytes
    ours: str
    theirs: str
    adopt: Entry | None = None


@dataclass(frozen=True, slots=True)
class Adoption:
    """A directory of the overlay that gets another owner and mode."""

    path: bytes
    uid: int
    gid: int
    permissions: int


def read_comparison(answer: IO[bytes]) -> Comparison:
    """Read the guest's answer, to the end of the tar file in it.

    Raises:
        FormatError: it is not of the right form: the guest has read strangers' file systems.
    """
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=answer, mode="r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None or member.size > MAX_ANSWER:
                    raise FormatError(
                        tr("the guest's answer has a bad part {member}", member=member.name)
                    )
                parts[member.name] = file.read()
        return Comparison(
            upper=_entries(parts["upper.stat"], parts["upper.hash"], complete=False),
            opaque=frozenset(_paths(parts["opaque"])),
            old=_entries(parts["old.stat"], parts["old.hash"]),
            new=_entries(parts["new.stat"], parts["new.hash"]),
        )
    except (tarfile.TarError, KeyError, ValueError, OverflowError) as err:
        raise FormatError(tr("the guest's answer cannot be read: {err}", err=err)) from err


def _paths(data: bytes) -> Iterator[bytes]:
    for path in data.split(b"\0")[:-1]:
        if not path.startswith(b".//"):
            raise FormatError("the guest's answer has a path of another form")
        yield path[3:]


def _records(data: bytes, head: re.Pattern[bytes]) -> Iterator[tuple[re.Match[bytes], bytes]]:
    """Cut a list into records: fields, a path that may hold anything but "//", a line feed."""
    at = 0
    while at < len(data):
        fields = head.match(data, at)
        if fields is None:
            raise FormatError("the guest's answer has a record of another form")
        # The next record begins after the last line feed before its path.
        following = data.find(b".//", fields.end())
        at = data.rfind(b"\n", fields.end(), None if following < 0 else following) + 1
        if not at:
            raise FormatError("the guest's answer has a record without an end")
        yield fields, data[fields.end() : at - 1]


def _entries(stats: bytes, hashes: bytes, *, complete: bool = True) -> dict[bytes, Entry]:
    digests = {path: fields[1] for fields, path in _records(hashes, _HASH)}
    entries = {}
    for fields, path in _records(stats, _STAT):
        mode = int(fields[1], 16)
        digest = digests.get(path, b"")
        if complete and not digest and (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            name = path.decode(errors="replace")
            raise FormatError(tr("the guest could not read {name}", name=name))
        device = int(fields[4], 16), int(fields[5], 16)
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            device = 0, 0
        entries[path] = Entry(mode, int(fields[2]), int(fields[3]), device, digest)
    return entries


def find_conflicts(found: Comparison) -> list[Conflict]:
    """Return the paths that both the newer image and the overlay changed, in order.

    All other files need no decision: the overlay's files stay, and files that it does not hide are
    those of the new image.
    """
    conflicts = []
    below_old, below_new = sorted(found.old), sorted(found.new)
    hidden_by: bytes | None = None
    for path in sorted(found.upper, key=lambda path: path.split(b"/")):
        if hidden_by is not None and path.startswith(hidden_by + b"/"):
            continue
        ours, old, new = found.upper[path], found.old.get(path), found.new.get(path)
        if ours.is_directory and path not in found.opaque:
            conflict = _joined(path, ours, old, new)
        else:
            hidden_by = path
            paths = {*_tree(below_old, path), *_tree(below_new, path)}
            changed = any(found.old.get(name) != found.new.get(name) for name in paths)
            conflict = _hiding(path, ours, old, new) if changed else None
        if conflict is not None:
            conflicts.append(conflict)
    return conflicts


def _joined(path: bytes, ours: Entry, old: Entry | None, new: Entry | None) -> Conflict | None:
    """Whether it is a directory that shows the image's files in it."""
    if new is None or old == new or ours == new:
        return None
    if not new.is_directory:
        return Conflict(path, "changed" if old else "added", _change(old, new))
    if old is None or not old.is_directory:
        return None  # both made it, and their files in it are joined
    return Conflict(path, "changed", "changed", adopt=new)


def _hiding(path: bytes, ours: Entry, old: Entry | None, new: Entry | None) -> Conflict | None:
    """Conflicts below a directory that hides the image's files, which the image changed."""
    if ours.is_whiteout:
        return Conflict(path, "deleted", _change(old, new)) if new else None
    if ours == new and not ours.is_directory:
        return None  # both did the same
    if old is None:
        return Conflict(path, "added", _change(old, new))
    return Conflict(path, "replaced" if ours.is_directory else "changed", _change(old, new))


def _change(old: Entry | None, new: Entry | None) -> str:
    return "added" if old is None else "deleted" if new is None else "changed"


def _tree(paths: list[bytes], top: bytes) -> Iterator[bytes]:
    """Of sorted paths, `top` and those below it."""
    for prefix, exact in ((top, True), (top + b"/", False)):
        at = bisect_left(paths, prefix)
        while at < len(paths) and (paths[at] == prefix if exact else paths[at].startswith(prefix)):
            yield paths[at]
            at += 1


def take_theirs(conflicts: list[Conflict]) -> tuple[list[bytes], list[Adoption]]:
    """Return the paths that the overlay must drop, and those that it must adopt.

    Then the newer image's side of each conflict shows.
    """
    drop = [conflict.path for conflict in conflicts if conflict.adopt is None]
    adopt = [
        Adoption(one.path, one.adopt.uid, one.adopt.gid, stat.S_IMODE(one.adopt.mode))
        for one in conflicts
        if one.adopt is not None
    ]
    return drop, adopt
