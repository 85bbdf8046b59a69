"""The files in an image's file system, as `files/` shows them.

They are read from the device by readers of our own (`p2pcloop.formats.file_tree`), so nothing is
mounted and no program of the system parses a stranger's bytes. All of them belong to the user who
mounted the tree, and can be read; devices, sockets and pipes are left out.
"""

from __future__ import annotations

import logging
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import trio

from p2pcloop.errors import FormatError
from p2pcloop.formats.ext4 import Ext4
from p2pcloop.formats.file_tree import MAX_ENTRIES, Entry, FileTree, Inode, Prepare, Read
from p2pcloop.formats.iso_files import IsoFiles
from p2pcloop.formats.manifest import Manifest, SignedManifest
from p2pcloop.formats.squashfs import Squashfs
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.protocol.fuse import DirectoryEntry
from p2pcloop.words import tr
from p2pcloopd.block.backend import complete
from p2pcloopd.mount.images import HeldImage
from p2pcloopd.mount.nodes import (
    FOREVER,
    Directory,
    File,
    Identity,
    Link,
    Node,
    Opened,
    inode_number,
    seek_data,
)

Open = Callable[[Read, int, Prepare], FileTree[Any]]

_READERS: dict[str, Open] = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), Ext4),
    "iso9660": IsoFiles,
    "squashfs": Squashfs,
}
"""File systems whose files are shown, and what reads them."""

_ROOT = 0
"""Stands for the root's inode, which is not known before something is read."""

_SHOWN = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)

_STEP = 256
"""Entries that are worked on before other readers get their turn."""

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def why_no_files(manifest: Manifest) -> str | None:
    """Why the files of a version are not shown; None if they are."""
    if manifest.withdrawn:
        return tr("the version is withdrawn")
    if manifest.boot.roots:
        return tr("its files lie in several file systems, which a guest joins")
    kind = manifest.boot.root_type
    if kind not in _READERS:
        return tr(
            "files of {kind} are not read: mount disk.img", kind=kind or tr("no known file system")
        )
    return None


class NameTables:
    """The names of the directories that were read last, of all images of a mount together.

    The kernel knows a directory long after its names were needed; they are read again then.
    """

    def __init__(self) -> None:
        self._tables: OrderedDict[Identity, dict[bytes, Entry]] = OrderedDict()
        self._names = 0

    def get(self, folder: Identity) -> dict[bytes, Entry] | None:
        """Return the entries of a directory by name, if they are kept."""
        table = self._tables.get(folder)
        if table is not None:
            self._tables.move_to_end(folder)
        return table

    def put(self, folder: Identity, table: dict[bytes, Entry]) -> None:
        """Keep the entries of a directory, and up to `MAX_ENTRIES` of all."""
        if folder in self._tables:  # two programs read it at once
            return
        self._tables[folder] = table
        self._names += len(table) + 1
        while self._names > MAX_ENTRIES and len(self._tables) > 1:
            self._names -= len(self._tables.popitem(last=False)[1]) + 1


class FileSystem:
    """The file system of one version, as it is shown in one directory of the tree."""

    def __init__(
        self,
        signed: SignedManifest,
        where: str,
        hold: Callable[[], Awaitable[HeldImage]],
        tables: NameTables,
    ) -> None:
        """Read nothing yet.

        Args:
            signed: the version.
            where: the directory; a directory of the file system has one place in a tree.
            hold: opens the image.
            tables: keeps the names of its directories.
        """
        self.tables = tables
        self._hold = hold
        self._open = _READERS[signed.manifest.boot.root_type]
        self._signed = signed
        self._where = where

    def root(self) -> Node:
        """Its root; nothing is read for that."""
        changed = self._signed.manifest.created
        return _Folder(self, Inode(_ROOT, stat.S_IFDIR, 0, changed))

    def identity(self, number: int) -> Identity:
        """The identity of an inode's node."""
        return "file", self._signed.id, self._where, number

    async def open(self) -> OpenTree:
        """Open the image and read the start of its file system; the caller closes it.

        Raises:
            P2pcloopError: the file system is damaged, or cannot be read.
        """
        image = await self._hold()
        try:
            tree = image.tree
            if tree is None:
                device = image.device
                read, prepare = partial(_read, device), partial(_prepare, device)
                tree = await _completed(image, lambda: self._open(read, device.size, prepare))
                image.tree = tree
        except BaseException:
            image.release()
            raise
        return OpenTree(image, tree)

    async def inode(self, number: int) -> Inode:
        """Read an inode.

        Raises:
            P2pcloopError: as of `open`.
        """
        with await self.open() as tree:
            inode: Inode = await tree.read(lambda files: files.inode(number))
            return inode


class OpenTree:
    """The file system of an image that is open, until `close`."""

    def __init__(self, image: HeldImage, files: FileTree[Any]) -> None:
        self.image = image
        self.files = files

    async def read(self, work: Callable[[FileTree[Any]], Result]) -> Result:
        """Return the result of `work`, which is called again when missing bytes have come.

        Raises:
            P2pcloopError: the file system is damaged, or cannot be read.
        """
        return await _completed(self.image, lambda: work(self.files))

    def close(self) -> None:
        """Use the image no more."""
        self.image.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _completed(image: HeldImage, work: Callable[[], Result]) -> Result:
    results: list[Result] = []

    def call() -> None:
        results.append(work())

    try:
        call()
    except Missing as missing:
        await complete(image.backend, call, missing.with_traceback(None))
    return results[0]


def _read(device: ImageDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.read_into(offset, (memoryview(data),))
    return bytes(data)


def _prepare(device: ImageDevice, ranges: Sequence[tuple[int, int]]) -> None:
    _all_at_once(partial(device.require, *each) for each in ranges)


def _all_at_once(calls: Iterable[Callable[[], None]]) -> None:
    """Make all calls, then raise one `Missing` with the ranges of all of them."""
    missing: list[ByteRange] = []
    for call in calls:
        try:
            call()
        except Missing as absent:
            missing += absent.ranges
    if missing:
        raise Missing(missing)


def _node(system: FileSystem, inode: Inode) -> Node | None:
    """The node of an inode; None for devices, sockets and pipes."""
    match stat.S_IFMT(inode.mode):
        case stat.S_IFDIR:
            return _Folder(system, inode)
        case stat.S_IFREG:
            return _File(system, inode)
        case stat.S_IFLNK:
            return _Link(system, inode)
    return None


class _Folder(Directory):
    def __init__(self, system: FileSystem, inode: Inode) -> None:
        super().__init__(
            system.identity(inode.number), changed=inode.changed, size=inode.size, seconds=FOREVER
        )
        self._system = system
        self._number = inode.number

    async def find(self, name: bytes) -> Node | None:
        entry = (await self._load()).get(name)
        if entry is None:
            return None
        return _node(self._system, await self._system.inode(entry.number))

    async def entries(self) -> Sequence[DirectoryEntry]:
        names = await self._load()
        kinds = await self._kinds([entry.number for entry in names.values() if not entry.kind])
        found: list[DirectoryEntry] = []
        for name, number, kind in names.values():
            mode = kind or kinds[number]
            if mode in _SHOWN:
                identity = self._system.identity(number)
                found.append(DirectoryEntry(name, inode_number(identity), mode))
                if len(found) % _STEP == 0:
                    await trio.lowlevel.checkpoint()
        return found

    async def _load(self) -> dict[bytes, Entry]:
        """Its entries by name."""
        names = self._system.tables.get(self.identity)
        if names is None:
            names = await self._read_names()
            self._system.tables.put(self.identity, names)
        return names

    async def _read_names(self) -> dict[bytes, Entry]:
        """Read its entries in parts: what was read is kept when a part lacks bytes, and other
        readers get their turn after each."""
        names: dict[bytes, Entry] = {}
        with await self._system.open() as tree:
            number = tree.files.root if self._number == _ROOT else self._number
            folder: Inode = await tree.read(lambda files: files.inode(number))
            start: int | None = 0
            while start is not None:
                part, start = await tree.read(
                    lambda files, start=start: files.entries(folder, start)  # type: ignore[misc]
                )
                for entry in part:
                    names.setdefault(entry.name, entry)
                if len(names) > MAX_ENTRIES:
                    raise FormatError(
                        tr("a directory has more than {max_entries} names", max_entries=MAX_ENTRIES)
                    )
                await trio.lowlevel.checkpoint()
        return names

    async def _kinds(self, numbers: Sequence[int]) -> dict[int, int]:
        """The kinds of inodes; 0 for one that cannot be read."""
        kinds: dict[int, int] = {}
        if not numbers:
            return kinds
        with await self._system.open() as tree:
            for at in range(0, len(numbers), _STEP):
                some = numbers[at : at + _STEP]
                await tree.read(
                    lambda files, some=some: _all_at_once(  # type: ignore[misc]
                        partial(_read_kind, files, number, kinds) for number in some
                    )
                )
                await trio.lowlevel.checkpoint()
        return kinds


def _read_kind(files: FileTree[Any], number: int, kinds: dict[int, int]) -> None:
    if number in kinds:
        return
    try:
        kinds[number] = stat.S_IFMT(files.inode(number).mode)
    except FormatError as err:
        _log.warning("an entry of a directory is left out: %s", err)
        kinds[number] = 0


class _File(File):
    def __init__(self, system: FileSystem, inode: Inode) -> None:
        super().__init__(
            system.identity(inode.number), changed=inode.changed, size=inode.size, seconds=FOREVER
        )
        if inode.mode & 0o111:
            self.permissions = 0o555
        self._system = system
        self._inode = inode

    async def open(self) -> Opened:
        return _OpenFile(await self._system.open(), self._inode)


class _OpenFile:
    def __init__(self, tree: OpenTree, inode: Inode) -> None:
        self._tree = tree
        self._inode = inode

    def read_into(self, offset: int, view: memoryview) -> int:
        missing: list[ByteRange] = []
        done = 0
        for size, place in self._tree.files.runs(self._inode, offset, len(view)):
            part = view[done : done + size]
            done += size
            if not isinstance(place, int):
                part[:] = bytes(size) if place is None else place
                continue
            try:
                self._tree.image.device.read_into(place, (part,))
            except Missing as absent:
                missing += absent.ranges
        if missing:
            raise Missing(missing)
        return done

    async def supply(self, missing: Missing) -> None:
        await self._tree.image.backend.supply(missing)

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: a file lies in few chunks."""

    def seek(self, offset: int, whence: int) -> int:
        return seek_data(offset, whence, self._inode.size)

    def close(self) -> None:
        self._tree.close()


class _Link(Link):
    def __init__(self, system: FileSystem, inode: Inode) -> None:
        super().__init__(
            system.identity(inode.number), changed=inode.changed, size=inode.size, seconds=FOREVER
        )
        self._system = system
        self._inode = inode

    async def target(self) -> bytes:
        with await self._system.open() as tree:
            target: bytes = await tree.read(lambda files: files.target(self._inode))
            return target
