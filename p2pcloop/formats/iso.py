"""Finding the images of a live system on a CD image (ISO 9660; docs/formats/iso.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from p2pcloop.errors import FormatError
from p2pcloop.formats.cloop import is_cloop
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.filesystem import PROBE_SIZE, ROOT_TYPES, detect_filesystem
from p2pcloop.formats.iso9660 import (
    AGAIN,
    SYSTEM_AREA,
    Entry,
    Tree,
    advice,
    is_iso,
    read_volume,
)
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

__all__ = ["NESTED", "Iso", "IsoFile", "is_iso", "read_iso"]

NESTED = "LiveOS/squashfs.img"
"""A squashfs that may hold an ext4 as a file, not a root (dracut, dmsquash-live)."""

_KNOPPIX = re.compile(r"knoppix([1-9][0-9]?)?")
_LAYER = re.compile(r".+\.(squashfs|squ|erofs|ero|ext[234])")
"""Images that live-boot and casper join, and their shortened names in plain ISO 9660."""

_LANGUAGE = re.compile(r"[a-z]{2}(-[a-z]+)?|no-languages")
"""Ubuntu's layers with the packages of a language, or of none."""

_LIKE_AN_IMAGE = re.compile(r"linuxfs|.+\.(squashfs|squ|sfs|erofs|xzm|lzm|sb|cloop)")
_MAX_LISTED = 8
_MAX_FOLDERS = 200
_MAX_MODULE_FILE = 64 << 10

_INITS = ("sbin/init", "etc/init", "bin/init", "bin/sh")
_NO_INIT = tr(
    "neither a live system that is known nor /sbin/init lies on it: no guest boots from it"
)

_Named = list[tuple[str, Entry]]
"""Files with their paths, from base to top."""


@dataclass(frozen=True, slots=True)
class IsoFile:
    """A file on the CD.

    Attributes:
        name: its path on the CD.
        extents: its places in the CD image.
    """

    name: str
    extents: Extents


@dataclass(frozen=True, slots=True)
class Iso:
    """The content of a CD.

    Attributes:
        volume: its name.
        names: the kind of its file names: "Rock Ridge", "Joliet" or "ISO 9660".
        boots: whether a machine can boot from it (El Torito).
        images: the files of the live system, from base to top; empty if it is of no known kind.
        unknown: in that case, paths of files that look like images.
        notes: remarks for the user on files that were left out.
    """

    volume: str
    names: str
    boots: bool
    images: tuple[IsoFile, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_iso(fd: int, size: int) -> Iso:
    """Read the directories of a CD image that matter, and find the live system's files.

    Args:
        fd: of the CD image.
        size: its bytes.

    Raises:
        FormatError: a part that is needed is damaged, or it is cut off.
        OSError: the system refused.
    """
    volume = read_volume(fd, size)
    if volume.claimed > size:
        raise FormatError(
            tr(
                "it is cut off: it says that it has {claimed} bytes, and {size} are here",
                claimed=volume.claimed,
                size=size,
            ),
            hint=AGAIN,
        )
    for tree in volume.trees:
        cd = _Cd(fd, tree)
        for layout in _LAYOUTS:
            if found := layout(cd):
                images = _take_once([_to_file(name, entry, size) for name, entry in found])
                _check(images)
                return Iso(volume.name, tree.names, volume.boots, images, (), tuple(cd.notes))
    tree = volume.trees[0]
    unknown = tuple(_like_images(_Cd(fd, tree), volume.claimed))
    notes = () if _has_init(tree) else (_NO_INIT,)
    return Iso(volume.name, tree.names, volume.boots, (), unknown, notes)


def _has_init(tree: Tree) -> bool:
    """Whether the CD itself may be a root: one of the programs that the kernel looks for."""
    try:
        return any(tree.find(path) is not None for path in _INITS)
    except FormatError:
        return True  # that is not known


class _Cd:
    """The search for a known layout in one tree of a CD.

    Attributes:
        tree: its directories.
        notes: remarks on files that were left out.
    """

    def __init__(self, fd: int, tree: Tree) -> None:
        self.tree = tree
        self.notes: list[str] = []
        self._fd = fd

    def files(self, folder: str, wanted: re.Pattern[str]) -> dict[str, tuple[str, Entry]]:
        """Files of a folder whose whole name in lower case matches, with their paths.

        Raises:
            FormatError: one is a symbolic link to a file that is not on the CD.
        """
        found = {}
        for name, entry in self.tree.entries(folder).items():
            if wanted.fullmatch(name):
                path = self._path(folder, entry)
                file = entry if entry.link is None else self.tree.find(f"{folder}/{entry.name}")
                if file is None:
                    where = (
                        tr("to {link}", link=entry.link)
                        if entry.link
                        else tr("that is written badly")
                    )
                    raise FormatError(
                        tr(
                            "{path} is a symbolic link {where}: that is no file on it",
                            path=path,
                            where=where,
                        ),
                        hint=AGAIN,
                    )
                if not file.directory:
                    found[name] = (path, file)
        return found

    def read(self, file: Entry, limit: int) -> bytes:
        """The first bytes of a file; none if it has a fault."""
        where = Extents(file.extents)
        return b"" if file.fault else where.pread(self._fd, min(limit, where.size), 0)

    def _path(self, folder: str, entry: Entry) -> str:
        """The path as the CD spells it."""
        at, names = "", []
        for name in filter(None, folder.split("/")):
            known = self.tree.entries(at).get(name.lower())
            names.append(name if known is None else known.name)
            at = f"{at}/{name}"
        return "/".join([*names, entry.name])


def _knoppix(cd: _Cd) -> _Named:
    """KNOPPIX, then KNOPPIX1 to KNOPPIX99 by their numbers."""
    found = cd.files("knoppix", _KNOPPIX)
    return [found[name] for name in sorted(found, key=lambda name: (len(name), name))]


def _live(cd: _Cd) -> _Named:
    """Debian's: what filesystem.module lists, else all, by name (live-boot, 9990-overlay.sh)."""
    lists = cd.files("live", re.compile(r"filesystem\.module|filesyst\.mod"))
    found = cd.files("live", _LAYER)
    if not lists or not found:
        return [found[name] for name in sorted(found)]
    path, file = next(iter(lists.values()))
    listed = cd.read(file, _MAX_MODULE_FILE).decode("utf-8", "replace").split()
    if absent := [name for name in listed if name.lower() not in found]:
        raise FormatError(
            tr("{path} lists {absent}: not on it", path=path, absent=_some(absent)), hint=AGAIN
        )
    wanted = list(dict.fromkeys(name.lower() for name in listed))
    _record_left(cd, [found[name][0] for name in found if name not in wanted])
    return [found[name] for name in wanted]


def _casper(cd: _Cd) -> _Named:
    """Ubuntu's: if the names are layers of one base, those of one branch; else all, by name.

    `a.b.c.squashfs` lies on `a.b.squashfs`, and that on `a.squashfs` (casper, LAYERFS_PATH). Only
    the initrd names the branch; this takes one for live sessions.
    """
    found = cd.files("casper", _LAYER)
    layers = {tuple(name.split(".")[:-1]): found[name] for name in sorted(found)}
    base = min(layers, key=len, default=())
    if len(layers) < 2 or any(layer[: len(base)] != base for layer in layers):
        return [found[name] for name in sorted(found)]
    whole = [
        layer
        for layer in layers
        if layer == base
        or (_chain(base, layer) <= layers.keys() and not _LANGUAGE.fullmatch(layer[-1]))
    ]
    live = [layer for layer in whole if "live" in layer[len(base) :]]
    deepest = max(map(len, live or whole))
    # If several are equally deep (kernels), take the layers that they share.
    chains = [_chain(base, layer) for layer in live or whole if len(layer) == deepest]
    chosen = sorted(frozenset.intersection(*chains), key=len)
    _record_left(cd, [path for layer, (path, _) in layers.items() if layer not in chosen])
    return [layers[layer] for layer in chosen]


def _chain(base: tuple[str, ...], layer: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """A layer and those below it."""
    return frozenset(layer[:length] for length in range(len(base), len(layer) + 1))


def _live_os(cd: _Cd) -> _Named:
    """Fedora's, openSUSE's, Void's (dracut's dmsquash-live)."""
    found = cd.files("liveos", re.compile(r"squashfs\.img|(rootfs|ext3fs)\.img"))
    return [found[name] for name in sorted(found, reverse=True)][:1]


def _arch(cd: _Cd) -> _Named:
    """Arch Linux's (archiso), for the architecture of this machine."""
    for folder in ("arch/x86_64", "arch/i686"):
        found = cd.files(folder, re.compile(r"airootfs\.(sfs|erofs|ero)"))
        if found:
            return [found[max(found)]]
    return []


def _antix(cd: _Cd) -> _Named:
    """antiX's and MX Linux's."""
    return list(cd.files("antix", re.compile("linuxfs")).values())


_LAYOUTS: tuple[Callable[[_Cd], _Named], ...] = (
    _knoppix,
    _live,
    _casper,
    _live_os,
    _arch,
    _antix,
)


def _record_left(cd: _Cd, paths: list[str]) -> None:
    if paths:
        cd.notes.append(tr("left out: {paths}", paths=_some(paths)))


def _some(names: list[str]) -> str:
    """As many of them as fit into a line."""
    more = len(names) - _MAX_LISTED
    told = ", ".join(names[:_MAX_LISTED])
    return tr("{names} and {more} more", names=told, more=more) if more > 0 else told


def _like_images(cd: _Cd, size: int) -> list[str]:
    """Files that look like images, in the first two levels of folders; damaged ones are skipped.

    Args:
        size: bytes of the CD. A file that takes most of it may have any name.
    """
    folders, found, seen = [""], list[str](), set[int]()
    for folder in folders:
        try:
            entries = cd.tree.entries(folder)
        except FormatError:
            continue
        if id(entries) in seen:  # two names of one folder, which was read already
            continue
        seen.add(id(entries))
        for name, entry in entries.items():
            path = f"{folder}/{entry.name}".lstrip("/")
            if entry.directory and folder.count("/") < 2 and len(folders) < _MAX_FOLDERS:
                folders.append(path)
                continue
            likely = _LIKE_AN_IMAGE.fullmatch(name) or _length(entry) > size // 4
            if likely and _begins_like_one(cd, entry):
                found.append(path)
    return found


def _begins_like_one(cd: _Cd, entry: Entry) -> bool:
    if entry.directory or entry.link is not None:
        return False
    head = cd.read(entry, PROBE_SIZE)
    return is_cloop(head) or detect_filesystem(head) in ROOT_TYPES


def _length(entry: Entry) -> int:
    return sum(length for _, length in entry.extents)


def _to_file(name: str, entry: Entry, size: int) -> IsoFile:
    """The places of a file. A file above 4 GiB has several extents."""
    if entry.fault:
        raise FormatError(
            tr("{name} {fault}", name=name, fault=entry.fault), hint=advice(entry.fault)
        )
    for offset, length in entry.extents:
        if offset < SYSTEM_AREA or offset + length > size:
            raise FormatError(
                tr("{name} lies outside the {size} bytes of the file", name=name, size=size),
                hint=AGAIN,
            )
    return IsoFile(name, Extents(entry.extents))


def _take_once(files: Iterable[IsoFile]) -> tuple[IsoFile, ...]:
    """The first name of each file: a file may have several."""
    known: dict[Extents, IsoFile] = {}
    for file in files:
        known.setdefault(file.extents, file)
    return tuple(known.values())


def _check(images: Iterable[IsoFile]) -> None:
    """Check the places of files.

    Raises:
        FormatError: one is empty, or they overlap.
    """
    taken: list[tuple[int, int, str]] = []
    for image in images:
        if not image.extents.size:
            raise FormatError(tr("{image} is empty", image=image.name), hint=AGAIN)
        taken += [(offset, offset + length, image.name) for offset, length in image.extents]
    taken.sort()
    for (_, end, first), (start, _, second) in pairwise(taken):
        if start < end:
            raise FormatError(
                tr("{first} and {second} overlap", first=first, second=second), hint=AGAIN
            )
