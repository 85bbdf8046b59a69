"""Files of a squashfs that mksquashfs made, read without a mount; and damaged ones."""

from __future__ import annotations

import os
import random
import stat
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.squashfs import DECODERS, Squashfs, SquashInode
from tests.formats.test_codec import CONTENT, SIZE, store
from tests.formats.test_ext4 import TIME, make_tree
from tests.support.file_systems import numbers, read, reader, walk
from tests.support.programs import tool

BLOCK = 4096


def opened(data: bytes | bytearray) -> Squashfs:
    return Squashfs(reader(data), len(data))


def metadata(content: bytes, size: int = 8192) -> tuple[bytes, list[int]]:
    """Metadata in blocks of `size` bytes, and where each of these begins."""
    stored, places = bytearray(), list[int]()
    for at in range(0, len(content), size):
        block = zlib.compress(content[at : at + size])
        places.append(len(stored))
        stored += struct.pack("<H", len(block)) + block
    return bytes(stored), places


def image(inodes: bytes, folders: bytes = b"", data: bytes = b"") -> bytes:
    """A squashfs of zlib and blocks of 4 KiB, from its parts as they are stored."""
    at = 96 + len(data)
    places = (0, at + len(inodes) + len(folders), 1 << 63, 1 << 63)
    tables = (at, at + len(inodes), 1 << 63, 1 << 63)
    head = (b"hsqs", 1, 0, BLOCK, 0, 1, 12, 0, 0, 4, 0)
    return struct.pack("<4sIIIIHHHHHHQQQQQQQQ", *head, *places, *tables) + data + inodes + folders


def sparse_files(count: int, blocks: int, size: int = 8192) -> tuple[bytes, list[int]]:
    """An image with files of so many blocks, and their inodes. Only the last block is no hole."""
    sizes = bytes(4 * (blocks - 1)) + struct.pack("<I", BLOCK | 1 << 24)
    inode = struct.pack("<HHHHIIIIII", 2, 0o644, 0, 0, 0, 1, 96, 0xFFFFFFFF, 0, blocks * BLOCK)
    inodes, places = metadata((inode + sizes) * count, size)
    starts = (divmod(number * len(inode + sizes), size) for number in range(count))
    numbers = [(places[block] << 16 | offset) + 1 for block, offset in starts]
    return image(inodes, data=b"last" * (BLOCK // 4)), numbers


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most bytes of each block that zlib decodes from now on, as they are decoded."""
    decoded: list[int] = []
    decode = DECODERS[1]

    def count(stored: bytes, most: int) -> bytes:
        decoded.append(most)
        return decode(stored, most)

    monkeypatch.setitem(DECODERS, 1, count)
    return decoded


def make(tree: Path, out: Path, *options: str) -> bytes:
    tool("mksquashfs", tree, out, "-quiet", "-no-progress", "-noappend", *options)
    return out.read_bytes()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squashfs") / "tree"
    folder.mkdir()
    make_tree(folder)
    text = b"".join(b"line %d of a text\n" % number for number in range(60_000))
    (folder / "text").write_bytes(text)
    (folder / "noise").write_bytes(random.Random(2).randbytes(300_001))
    os.mkfifo(folder / "pipe")
    for name in ("text", "noise", "pipe"):
        os.utime(folder / name, (TIME, TIME))
    return folder


OPTIONS = {
    "gzip": (),
    **{name: ("-comp", name) for name in ("xz", "lz4", "lzo", "zstd")},
    "plain": ("-noI", "-noD", "-noF"),
    "no fragments": ("-no-fragments", "-b", "4096"),
    "tails": ("-always-use-fragments", "-b", "1M", "-comp", "zstd"),
    "filters": ("-comp", "xz", "-Xbcj", "x86"),
}


@pytest.fixture(scope="module", params=OPTIONS)
def device(request: pytest.FixtureRequest, tree: Path) -> bytes:
    return make(tree, tree.with_name(f"{request.param}.img"), *OPTIONS[request.param])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small") / "tree"
    (folder / "a").mkdir(parents=True)
    (folder / "a/file").write_bytes(b"text " * 50_000)
    (folder / "link").symlink_to("a/file")
    return make(folder, folder.with_name("small.img"), "-comp", "zstd", "-b", "64K")


def test_all_files_are_read_as_they_were_written(device: bytes, tree: Path) -> None:
    files = opened(device)
    found = dict(walk(files, files.inode(files.root)))
    wanted = {os.fsencode(path.relative_to(tree)): path for path in tree.rglob("*")}
    assert found.keys() == wanted.keys()
    for name, inode in found.items():
        facts = wanted[name].lstat()
        assert (inode.mode, inode.changed) == (facts.st_mode, TIME), name
        if stat.S_ISLNK(inode.mode):
            assert files.target(inode) == os.fsencode(wanted[name].readlink())
        if stat.S_ISREG(inode.mode):
            assert inode.size == facts.st_size
            assert read(device, files, inode) == wanted[name].read_bytes(), name
    assert found[b"twin"].number == found[b"small"].number


def test_parts_of_files(device: bytes, tree: Path) -> None:
    files = opened(device)
    names = numbers(files, files.inode(files.root))
    for name in ("sparse", "text", "noise"):
        inode, wanted = files.inode(names[name.encode()]), (tree / name).read_bytes()
        end = len(wanted)
        for offset, length in ((0, 1), (4095, 2), (131_000, 300), (end - 1, 9), (end, 5)):
            assert read(device, files, inode, offset, length) == wanted[offset : offset + length]
    sparse = files.inode(names[b"sparse"])
    holes = sum(size for size, place in files.runs(sparse, 0, sparse.size) if place is None)
    assert holes > sparse.size // 2


def test_a_block_is_decoded_once_for_reads_that_follow_each_other(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tree, tree.with_name("counted.img"), "-b", "1M")
    decoded = count_decoded(monkeypatch)
    files = opened(data)
    text = files.inode(numbers(files, files.inode(files.root))[b"text"])
    before = decoded.count(1 << 20)
    for offset in range(0, 1 << 20, 1 << 17):
        read(data, files, text, offset, 1 << 17)
    assert decoded.count(1 << 20) == before + 1


def test_what_is_missing_is_asked_for_at_once(tree: Path) -> None:
    """What raises in the middle leaves nothing behind: the same call succeeds later."""
    data = make(tree, tree.with_name("asked.img"), "-b", "4096", "-no-fragments")
    asked: list[int] = []

    class LackingError(Exception):
        """Bytes are not here yet."""

    def prepare(ranges: object) -> None:
        assert isinstance(ranges, list)
        asked.append(len(ranges))
        if len(asked) == 1:
            raise LackingError

    files = Squashfs(reader(data), len(data), prepare)
    noise = files.inode(numbers(files, files.inode(files.root))[b"noise"])
    with pytest.raises(LackingError):
        list(files.runs(noise, 0, 10 * 4096))
    assert read(data, files, noise, 0, 10 * 4096) == (tree / "noise").read_bytes()[: 10 * 4096]
    assert asked == [10, 10]


def test_blocks_that_others_of_a_read_push_out_are_asked_for(tree: Path) -> None:
    """Two decoded blocks are kept: these are of the read's end, and it decodes others first."""
    data = make(tree, tree.with_name("pushed.img"), "-b", "4096", "-no-fragments")
    asked: list[list[tuple[int, int]]] = []
    files = Squashfs(reader(data), len(data), lambda ranges: asked.append(list(ranges)))
    text = files.inode(numbers(files, files.inode(files.root))[b"text"])
    read(data, files, text, 8 * BLOCK, 2 * BLOCK)
    assert read(data, files, text, 0, 10 * BLOCK) == (tree / "text").read_bytes()[: 10 * BLOCK]
    assert asked[1][8:] == asked[0]


def test_the_sizes_of_a_files_blocks_are_gone_through_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = 1 << 15
    data, numbers = sparse_files(8, blocks)
    decoded = count_decoded(monkeypatch)
    files = opened(data)
    inodes = [files.inode(number) for number in numbers]
    for most in (16 * 8 + 8, 0, 0):
        decoded.clear()
        for inode in inodes:
            offset = (blocks - 2) * BLOCK
            assert read(data, files, inode, offset, 2 * BLOCK) == bytes(BLOCK) + b"last" * 1024
        assert len(decoded) <= most
    files._groups.clear()
    decoded.clear()
    for inode in inodes:
        read(data, files, inode, 5 * BLOCK, BLOCK)
    assert len(decoded) <= 2 * len(inodes)


def test_a_file_of_many_blocks_takes_little_memory() -> None:
    data, numbers = sparse_files(3, 1 << 18)
    files = opened(data)
    with memory() as kept:
        for number in numbers:
            inode = files.inode(number)
            assert read(data, files, inode, inode.size - BLOCK, BLOCK)[:4] == b"last"
    assert kept[0] < 1 << 20


@contextmanager
def memory() -> Iterator[list[int]]:
    """The bytes that are kept of what was done in it."""
    kept: list[int] = []
    tracemalloc.start()
    try:
        yield kept
        kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


def test_a_file_of_too_many_blocks_is_told() -> None:
    data, (number,) = sparse_files(1, (1 << 18) + 1)
    files = opened(data)
    inode = files.inode(number)
    assert read(data, files, inode, 0, BLOCK) == bytes(BLOCK)
    with pytest.raises(FormatError, match="more than 262144 blocks"):
        read(data, files, inode, inode.size - BLOCK, BLOCK)


def test_metadata_in_blocks_of_few_bytes_is_told() -> None:
    """A million blocks of a byte each would stop other readers for seconds."""
    data, (number,) = sparse_files(1, 1000, size=64)
    files = opened(data)
    with pytest.raises(FormatError, match="no place in metadata"):
        read(data, files, files.inode(number), 0, 1)


def test_names_have_up_to_255_bytes() -> None:
    for length in (255, 256):
        entry = struct.pack("<IIIHhHH", 0, 0, 1, 0, 0, 2, length - 1) + b"n" * length
        folder = struct.pack("<HHHHIIIIHHI", 1, 0o755, 0, 0, 0, 1, 0, 2, len(entry) + 3, 0, 1)
        files = opened(image(metadata(folder)[0], metadata(entry)[0]))
        root = files.inode(files.root)
        if length == 255:
            assert list(numbers(files, root)) == [b"n" * length]
        else:
            with pytest.raises(FormatError, match="directory of the squashfs is damaged"):
                files.entries(root)


@pytest.mark.parametrize("codec", [Codec.ZLIB, Codec.LZO, Codec.XZ, Codec.LZ4, Codec.ZSTD])
def test_a_block_holds_at_most_what_it_may(codec: Codec) -> None:
    kinds = {Codec.ZLIB: 1, Codec.LZO: 3, Codec.XZ: 4, Codec.LZ4: 5, Codec.ZSTD: 6}
    decode, stored = DECODERS[kinds[codec]], store(codec, CONTENT)
    for most in (SIZE, SIZE + 1, 1 << 20):
        assert decode(stored, most) == CONTENT
    for damaged, most in (
        (stored, SIZE - 1),
        (stored[:-1], SIZE),
        (stored + b"\0", 2 * SIZE),
        (stored + stored, 2 * SIZE),
    ):
        with pytest.raises(FormatError):
            decode(damaged, most)


def test_what_is_not_read_is_told(small: bytes) -> None:
    for data in (b"", bytes(4096), small[:90]):
        with pytest.raises(FormatError, match="no superblock"):
            opened(data)
    for at, value, told in (
        (28, 3, "version 3.0"),
        (20, 2, "compressed by LZMA"),
        *((20, other, rf"a method that is not known \({other}\)") for other in (0, 7, 200)),
        (22, 40, "impossible values"),
        (22, 15, "impossible values"),
    ):
        damaged = bytearray(small)
        struct.pack_into("<H", damaged, at, value)
        with pytest.raises(FormatError, match=told):
            opened(damaged)


def test_wrong_questions(small: bytes) -> None:
    files = opened(small)
    root = files.inode(files.root)
    link = files.inode(numbers(files, root)[b"link"])
    for question in (
        lambda: files.inode(0),
        lambda: files.inode(1 << 62),
        lambda: files.entries(link),
        lambda: files.target(root),
    ):
        with pytest.raises(FormatError):
            question()


@settings(max_examples=100)
@given(data=st.data())
def test_damage_is_told_or_does_no_harm(data: st.DataObject, tree: Path) -> None:
    """Whatever stands in the structures: an error of ours, or bytes of the device. Its structures
    are not compressed, so that what is changed is what is read."""
    place = tree.with_name("damaged.img")
    whole = place.read_bytes() if place.exists() else make(tree, place, "-noI", "-comp", "zstd")
    (inodes,) = struct.unpack_from("<Q", whole, 64)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.one_of(st.integers(0, 92), st.integers(inodes, len(damaged) - 4)))
        damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    try:
        files = opened(damaged)
        for _, inode in walk_some(files):
            if stat.S_ISREG(inode.mode):
                read(damaged, files, inode, 0, 1 << 18)
                read(damaged, files, inode, max(0, inode.size - 1), 1)
            if stat.S_ISLNK(inode.mode):
                files.target(inode)
    except FormatError:
        return


def walk_some(files: Squashfs) -> list[tuple[bytes, SquashInode]]:
    """Some of what is there: directories of a damaged one may hold each other."""
    found: list[tuple[bytes, SquashInode]] = []
    folders = [files.inode(files.root)]
    while folders and len(found) < 60:
        for name, number, _ in files.entries(folders.pop())[0]:
            inode = files.inode(number)
            found.append((name, inode))
            if stat.S_ISDIR(inode.mode):
                folders.append(inode)
    return found
