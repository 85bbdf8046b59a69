"""Directories of `files/` over a device in memory: long ones, odd ones, and what they fetch."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from p2pcloop.errors import FormatError
from p2pcloop.formats.file_tree import Entry, FileTree
from p2pcloop.image.api import Missing
from p2pcloopd.mount import files as module
from p2pcloopd.mount.files import FileSystem, NameTables
from p2pcloopd.mount.nodes import Directory
from tests.support.memory_device import MemoryDevice
from tests.support.programs import tool

pytestmark = pytest.mark.interop

MANY = 3000


class Image:
    """What a file system is read from.

    Attributes:
        fetched: the ranges of each round of fetching.
        tree: the file system, once it was read.
    """

    tree: FileTree[Any] | None = None

    def __init__(self, content: bytes) -> None:
        self.device = MemoryDevice(content)
        self.backend = self
        self.fetched: list[Sequence[tuple[int, int]]] = []

    async def supply(self, missing: Missing) -> None:
        self.fetched.append([(each.offset, each.length) for each in missing.ranges])
        for offset, length in self.fetched[-1]:
            self.device.fetch(offset, length)

    def release(self) -> None:
        pass


class Signed:
    """As much of a signed manifest as a file system needs."""

    id = bytes(32)

    class manifest:  # noqa: N801
        created = 0

        class boot:  # noqa: N801
            root_type = "ext4"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("folders") / "tree"
    (folder / "many").mkdir(parents=True)
    (folder / "first").write_text("x")
    for number in range(MANY):
        (folder / f"many/{number}").hardlink_to(folder / "first")
    path = folder.with_name("image")
    path.touch()
    os.truncate(path, 16 << 20)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-d", folder, path)
    return path.read_bytes()


def root(image: Image) -> Directory:
    async def hold() -> Any:
        return image

    signed: Any = Signed
    node = FileSystem(signed, "version", hold, NameTables()).root()
    assert isinstance(node, Directory)
    return node


async def directory(image: Image) -> Directory:
    found = await root(image).find(b"many")
    assert isinstance(found, Directory)
    return found


async def test_a_listing_reads_no_inode_and_fetches_at_once(content: bytes) -> None:
    image = Image(content)
    folder = await directory(image)
    reached = len(image.device.calls)
    image.device.withhold(0, len(content))
    entries = await folder.entries()
    assert (len(entries), {entry.mode for entry in entries}) == (MANY, {stat.S_IFREG})
    assert len(image.device.calls) - reached < MANY / 5
    assert len(image.fetched) < 12, "the blocks of the directory are fetched together"


async def test_a_listing_without_kinds_gathers_inodes(content: bytes) -> None:
    data = bytearray(content)
    (flags,) = struct.unpack_from("<I", data, 1024 + 96)
    struct.pack_into("<I", data, 1024 + 96, flags & ~0x2)
    folder = await directory(Image(bytes(data)))
    entries = await folder.entries()
    assert (len(entries), {entry.mode for entry in entries}) == (MANY, {stat.S_IFREG})


async def test_an_odd_entry_is_left_out(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(content)
    (flags,) = struct.unpack_from("<I", data, 1024 + 96)
    struct.pack_into("<I", data, 1024 + 96, flags & ~0x2)
    at = data.index(struct.pack("<HBB", 12, 2, 1) + b"77") - 4
    struct.pack_into("<I", data, at, 1 << 30)
    folder = await directory(Image(bytes(data)))
    entries = await folder.entries()
    assert len(entries) == MANY - 1
    assert b"77" not in {entry.name for entry in entries}
    assert "is left out" in caplog.text


async def test_the_names_of_all_directories_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not needed for the longest time go first."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 100)
    tables = NameTables()
    names = {b"%d" % number: Entry(b"%d" % number, number, 0) for number in range(30)}
    for number in (1, 2, 3):
        tables.put((number,), names)
    assert tables.get((1,)) is names
    tables.put((4,), names)
    assert [number for number in range(1, 5) if tables.get((number,)) is not None] == [1, 3, 4]
    tables.put((4,), names)
    assert tables.get((1,)) is names


async def test_a_directory_of_too_many_names(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", MANY - 1)
    folder = await directory(Image(content))
    with pytest.raises(FormatError, match="more than"):
        await folder.entries()
    with pytest.raises(FormatError, match="more than"):
        await folder.find(b"1")
