"""The files in an image's file system, as `files/` shows them.

They are read from the device by readers of our own (`p2pcloop.formats.file_tree`), so nothing is
mounted and no program of the system parses a stranger's bytes. All of them belong to the user who
mounted the tree, and can be read; devices, sockets and pipes are left out.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from p2pcloop.formats.ext4 import Ext4
from p2pcloop.formats.file_tree import FileTree, Inode, Read
from p2pcloop.formats.iso_files import IsoFiles
from p2pcloop.formats.manifest import Manifest, SignedManifest
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloopd.block.backend import complete
from p2pcloopd.mount.images import HeldImage
from p2pcloopd.mount.nodes import FOREVER, Directory, File, Identity, Link, Node, Opened, seek_data

Open = Callable[[Read, int], FileTree[Any]]

_READERS: dict[str, Open] = {"ext2": Ext4, "ext3": Ext4, "ext4": Ext4, "iso9660": IsoFiles}
"""File systems whose files are shown, and what reads them."""

_ROOT = 0
"""Stands for the root's inode, which is not known before something is read."""

Result = TypeVar("Result")


def why_no_files(manifest: Manifest) -> str | None:
    """Why the files of a version are not shown; None if they are."""
    if manifest.withdrawn:
        return "the version is withdrawn"
    if manifest.boot.roots:
        return "its files lie in several file systems, which a guest joins"
    kind = manifest.boot.root_type
    if kind not in _READERS:
        return f"files of {kind or 'no known file system'} are not read: mount disk.img"
    return None


class FileSystem:
    """The file system of one version, as it is shown in one directory of the tree."""

    def __init__(
        self, signed: SignedManifest, where: str, hold: Callable[[], Awaitable[HeldImage]]
    ) -> None:
        """Read nothing yet.

        Args:
            signed: the version.
            where: the directory; a directory of the file system has one place in a tree.
            hold: opens the image.
        """
        self.hold = hold
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

    async def read(self, work: Callable[[FileTree[Any]], Result]) -> Result:
        """Return the result of `work`, which is called again when missing bytes have come.

        Raises:
            P2pcloopError: the file system is damaged, or cannot be read.
        """
        image = await self.hold()
        try:
            return await self.read_held(image, work)
        finally:
            image.release()

    async def read_held(self, image: HeldImage, work: Callable[[FileTree[Any]], Result]) -> Result:
        """The same of an image that is open."""
        return await _completed(image, self._open, work)


async def _completed(
    image: HeldImage, open_tree: Open, work: Callable[[FileTree[Any]], Result]
) -> Result:
    results: list[Result] = []

    def call() -> None:
        device = image.device
        results.append(work(open_tree(partial(_read, device), device.size)))

    try:
        call()
    except Missing as missing:
        await complete(image.backend, call, missing.with_traceback(None))
    return results[0]


def _read(device: ImageDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.read_into(offset, (memoryview(data),))
    return bytes(data)


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
        self._names: dict[bytes, int] | None = None

    async def find(self, name: bytes) -> Node | None:
        number = (await self._load()).get(name)
        if number is None:
            return None
        inode: Inode = await self._system.read(lambda files: files.inode(number))
        return _node(self._system, inode)

    async def entries(self) -> Sequence[tuple[bytes, Node]]:
        names = await self._load()
        inodes: dict[int, Inode] = await self._system.read(
            lambda files: {number: files.inode(number) for number in names.values()}
        )
        found = [(name, _node(self._system, inodes[number])) for name, number in names.items()]
        return [(name, node) for name, node in found if node is not None]

    async def _load(self) -> dict[bytes, int]:
        """The inodes of its names."""
        if self._names is None:
            self._names = await self._system.read(self._list)
        return self._names

    def _list(self, files: FileTree[Any]) -> dict[bytes, int]:
        number = files.root if self._number == _ROOT else self._number
        return dict(files.entries(files.inode(number)))


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
        image = await self._system.hold()
        try:
            files = await self._system.read_held(image, lambda files: files)
        except BaseException:
            image.release()
            raise
        return _OpenFile(image, files, self._inode)


class _OpenFile:
    def __init__(self, image: HeldImage, files: FileTree[Any], inode: Inode) -> None:
        self._image = image
        self._files = files
        self._inode = inode

    def read_into(self, offset: int, view: memoryview) -> int:
        missing: list[ByteRange] = []
        done = 0
        for size, place in self._files.runs(self._inode, offset, len(view)):
            part = view[done : done + size]
            done += size
            if place is None:
                part[:] = bytes(size)
                continue
            try:
                self._image.device.read_into(place, (part,))
            except Missing as absent:
                missing += absent.ranges
        if missing:
            raise Missing(missing)
        return done

    async def supply(self, missing: Missing) -> None:
        await self._image.backend.supply(missing)

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: a file lies in few chunks."""

    def seek(self, offset: int, whence: int) -> int:
        return seek_data(offset, whence, self._inode.size)

    def close(self) -> None:
        self._image.release()


class _Link(Link):
    def __init__(self, system: FileSystem, inode: Inode) -> None:
        super().__init__(
            system.identity(inode.number), changed=inode.changed, size=inode.size, seconds=FOREVER
        )
        self._system = system
        self._inode = inode

    async def target(self) -> bytes:
        target: bytes = await self._system.read(lambda files: files.target(self._inode))
        return target
