"""The FUSE protocol: requests as the kernel's header lays them out, and replies."""

from __future__ import annotations

import errno
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.protocol import fuse
from p2pcloop.protocol.fuse import Attributes, DirectoryEntry, KernelProtocolError, Operation

FILE = Attributes(7, stat.S_IFREG | 0o444, 1000, 1_700_000_000, 1000, 100)


def request(operation: int, body: bytes = b"", *, unique: int = 9, node: int = 3) -> memoryview:
    """A request as struct fuse_in_header and its body have it."""
    length = 40 + len(body)
    header = struct.pack("=IIQQIIIHH", length, operation, unique, node, 0, 0, 4711, 0, 0)
    return memoryview(header + body)


@pytest.mark.parametrize(
    ("operation", "body", "parsed"),
    [
        (Operation.LOOKUP, b"disk.img\0", fuse.Lookup(9, 3, b"disk.img")),
        (Operation.GETATTR, bytes(16), fuse.GetAttributes(9, 3)),
        (Operation.READLINK, b"", fuse.ReadLink(9, 3)),
        (Operation.OPEN, struct.pack("=II", 0x8000, 0), fuse.Open(9, 3, 0x8000, directory=False)),
        (Operation.OPENDIR, struct.pack("=II", 0, 0), fuse.Open(9, 3, 0, directory=True)),
        (
            Operation.READ,
            struct.pack("=QQIIQII", 5, 1 << 40, 131072, 0, 0, 0, 0),
            fuse.Read(9, 5, 1 << 40, 131072),
        ),
        (
            Operation.READDIR,
            struct.pack("=QQIIQII", 5, 2, 4096, 0, 0, 0, 0),
            fuse.ReadDirectory(9, 5, 2, 4096),
        ),
        (Operation.RELEASE, struct.pack("=QIIQ", 5, 0, 0, 0), fuse.Release(9, 5)),
        (Operation.RELEASEDIR, struct.pack("=QIIQ", 5, 0, 0, 0), fuse.Release(9, 5)),
        (Operation.LSEEK, struct.pack("=QQII", 5, 4096, 3, 0), fuse.Seek(9, 5, 4096, 3)),
        (Operation.STATFS, b"", fuse.StatFs(9)),
        (Operation.FORGET, struct.pack("=Q", 2), fuse.Forget([(3, 2)])),
        (
            Operation.BATCH_FORGET,
            struct.pack("=IIQQQQ", 2, 0, 4, 1, 5, 6),
            fuse.Forget([(4, 1), (5, 6)]),
        ),
        (Operation.INTERRUPT, struct.pack("=Q", 8), fuse.Interrupt(8)),
        (Operation.DESTROY, b"", fuse.Destroy(9)),
        (Operation.WRITE, bytes(40), fuse.Refused(9, errno.EROFS)),
        (Operation.SETATTR, bytes(88), fuse.Refused(9, errno.EROFS)),
        (22, bytes(8), fuse.Refused(9, errno.ENOSYS)),
        (4711, b"", fuse.Refused(9, errno.ENOSYS)),
    ],
)
def test_requests(operation: int, body: bytes, parsed: fuse.Request) -> None:
    assert fuse.parse(request(operation, body)) == parsed


@given(st.sampled_from([*Operation, 0, 99]), st.binary(max_size=100), st.integers(0, 3))
def test_any_body_is_a_request_or_is_refused(operation: int, body: bytes, cut: int) -> None:
    data = request(operation, body)
    cut = min(cut, len(body))
    told = fuse.parse(data[: len(data) - cut])
    if cut:
        assert told == fuse.Refused(9, errno.EIO)


@given(st.binary(max_size=60))
def test_noise_is_an_error(data: bytes) -> None:
    if len(data) < 40:
        with pytest.raises(KernelProtocolError):
            fuse.parse(memoryview(data))
    elif struct.unpack_from("=I", data) != (len(data),):
        (unique,) = struct.unpack_from("=8xQ", data)
        assert fuse.parse(memoryview(data)) == fuse.Refused(unique, errno.EIO)


def test_extensions_of_a_request_are_no_part_of_its_name() -> None:
    body = b"name\0".ljust(8, b"\0") + bytes(8)
    data = bytearray(request(Operation.LOOKUP, body))
    struct.pack_into("=H", data, 36, 1)  # total_extlen, in units of 8 bytes
    assert fuse.parse(memoryview(data)) == fuse.Lookup(9, 3, b"name")


def test_names_end_and_are_not_too_long() -> None:
    for body in (b"name", b"\0"):
        assert fuse.parse(request(Operation.LOOKUP, body)) == fuse.Refused(9, errno.EIO)
    for length in (256, 1025, 4095):  # the last is the longest since Linux 6.14
        data = request(Operation.LOOKUP, b"a" * length + b"\0")
        assert fuse.parse(data) == fuse.Refused(9, errno.ENAMETOOLONG)
    longest = request(Operation.LOOKUP, b"a" * 255 + b"\0")
    assert fuse.parse(longest) == fuse.Lookup(9, 3, b"a" * 255)


def test_more_nodes_to_forget_than_came() -> None:
    body = struct.pack("=IIQQ", 1 << 31, 0, 4, 1)
    assert fuse.parse(request(Operation.BATCH_FORGET, body)) == fuse.Refused(9, errno.EIO)


def test_the_beginning() -> None:
    """As Linux 6.1 begins; it gets only abilities that it has."""
    body = struct.pack("=IIIII44x", 7, 37, 131072, 1 << 22 | 1 << 0 | 1 << 3, 0)
    init = fuse.parse(request(Operation.INIT, body))
    assert init == fuse.Init(9, 7, 37, 131072, 1 << 22 | 1 << 0 | 1 << 3)
    answer = fuse.reply_to_init(init)
    assert len(answer) == 16 + 64
    assert struct.unpack_from("=IiQ", answer) == (80, 0, 9)
    major, minor, readahead, flags = struct.unpack_from("=IIII", answer, 16)
    assert (major, minor, readahead, flags) == (7, 31, 131072, 1 << 22 | 1 << 0)
    (background,) = struct.unpack_from("=H", answer, 16 + 16)
    assert background >= 1024, "readers of an image without sources must not stop all others"
    (pages,) = struct.unpack_from("=H", answer, 16 + 28)
    assert pages * 4096 == fuse.MAX_READ
    (readahead,) = struct.unpack_from("=8xI", fuse.reply_to_init(init, readahead=0), 16)
    assert readahead == 0


def test_who_waits_for_a_request() -> None:
    assert fuse.reader_of(request(Operation.READ, bytes(40))) == 4711
    assert len(request(Operation.READ, bytes(40))) == fuse.READ_SIZE


def test_content_for_the_cache() -> None:
    """As struct fuse_out_header and fuse_notify_store_out have it; the code stands for an errno."""
    message = bytearray(fuse.STORE_HEADER_SIZE) + b"page"
    fuse.put_store_header(memoryview(message), 1, 8192, 4)
    assert bytes(message) == struct.pack("=IiQQQII", 44, 4, 0, 1, 8192, 4, 0) + b"page"
    assert fuse.length_of(memoryview(message + b"more")) == len(message)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 40), (8, 0)])
def test_a_kernel_of_another_version(major: int, minor: int) -> None:
    with pytest.raises(KernelProtocolError, match=f"speaks version {major}.{minor}"):
        fuse.reply_to_init(fuse.Init(9, major, minor, 131072, 0))


def test_replies() -> None:
    assert fuse.failed(9, errno.ENOENT) == struct.pack("=IiQ", 16, -errno.ENOENT, 9)
    assert fuse.reply(9, b"target") == struct.pack("=IiQ", 22, 0, 9) + b"target"
    assert fuse.opened(9, 5, fuse.KEEP_CACHE) == struct.pack("=IiQQII", 32, 0, 9, 5, 2, 0)
    assert fuse.sought(9, 4096) == struct.pack("=IiQQ", 24, 0, 9, 4096)
    assert len(fuse.file_system(9)) == 16 + 80
    buffer = memoryview(bytearray(20))
    fuse.put_header(buffer, 9, 4)
    assert bytes(buffer) == struct.pack("=IiQ", 20, 0, 9) + bytes(4)


def test_entries_and_attributes() -> None:
    entry = fuse.found(9, 3, FILE, 60, name_seconds=1)
    assert len(entry) == 16 + 40 + 88
    assert struct.unpack_from("=QQQQII", entry, 16) == (3, 0, 1, 60, 0, 0)
    number, size, blocks, accessed, modified, changed = struct.unpack_from("=6Q", entry, 56)
    assert (number, size, blocks) == (7, 1000, 2)
    assert accessed == modified == changed == 1_700_000_000
    mode, links, user, group = struct.unpack_from("=4I", entry, 56 + 60)
    assert (mode, links, user, group) == (FILE.mode, 1, 1000, 100)
    told = fuse.attributes_of(9, FILE, 60)
    assert told[16:24] == struct.pack("=Q", 60)
    assert told[32:] == entry[56:]
    absent = fuse.not_found(9, 10)
    assert len(absent) == len(entry)
    assert struct.unpack_from("=QQQ", absent, 16) == (0, 0, 10)


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=40), st.integers(300, 4096))
def test_directories_are_told_in_parts(names: list[bytes], room: int) -> None:
    entries = [DirectoryEntry(name, n, stat.S_IFDIR) for n, name in enumerate(names, 10)]
    told: list[DirectoryEntry] = []
    offset = 0
    while True:
        answer = fuse.directory(9, entries, fuse.ReadDirectory(9, 5, offset, room))
        body = answer[16:]
        assert len(body) <= room
        if not body:
            break
        while body:
            number, offset, length, kind = struct.unpack_from("=QQII", body)
            told.append(DirectoryEntry(body[24 : 24 + length], number, kind << 12))
            body = body[-(-(24 + length) // 8) * 8 :]
    assert told == entries


def test_a_directory_never_seems_to_end_early() -> None:
    """Neither at a name that no system takes, nor where there is no room for one entry."""
    entries = [DirectoryEntry(name, 5, stat.S_IFREG) for name in (b"a", b"l" * 256, b"z")]
    body = fuse.directory(9, entries, fuse.ReadDirectory(9, 5, 1, 4096))[16:]
    assert struct.unpack_from("=QQII", body) == (5, 3, 1, 8)
    assert body[24:25] == b"z"
    assert len(body) == 32
    too_small = fuse.ReadDirectory(9, 5, 0, 16)
    assert fuse.directory(9, entries, too_small) == fuse.failed(9, errno.EINVAL)
