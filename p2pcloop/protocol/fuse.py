"""The FUSE protocol of Linux, as far as a file system needs it that is only read.

Bytes of /dev/fuse in, requests out; replies as bytes. No descriptor is known here.

Source: include/uapi/linux/fuse.h of the kernel (version 7.31 is spoken, names without `fuse_`), and
Documentation/filesystems/fuse. Numbers have the byte order of the machine. Each read of /dev/fuse
gives one whole request, and each write takes one whole reply.
"""

from __future__ import annotations

import enum
import errno
import stat
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

ROOT: Final = 1
"""The number of the root's node."""

BUFFER_SIZE: Final = 64 << 10
"""Bytes that a read of /dev/fuse must have room for; the kernel wants 8 KiB at least."""

MAX_READ: Final = 1 << 20
"""Bytes of a file that the kernel asks for in one request at most."""

MAX_NAME: Final = 255
"""Bytes of a name in the tree, as of NAME_MAX. The kernel looks up longer ones, too: up to 1024
bytes, since Linux 6.14 up to 4095."""

KEEP_CACHE: Final = 1 << 1
"""Flag of an opened file: what the kernel has cached of it stays valid."""

_MAJOR, _MINOR = 7, 31
_MAX_WRITE = 4096
_MAX_PAGES = MAX_READ // 4096
_MAX_BACKGROUND = 4096
"""Requests of readahead that the kernel sends before the first of them is answered.

All buffered reads of the mount share them, and those of an image without sources wait without end:
with the kernel's 12, or 32, a few such readers would stop the readers of all other images. For a
user who is not root the kernel lowers the number to its `max_user_bgreq`, which grows with memory.
"""

_IN_HEADER = struct.Struct("=IIQQIIIHH")
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=QQQQII")
_ATTRIBUTES_OUT = struct.Struct("=QII")
_OPEN_IN = struct.Struct("=II")
_OPEN_OUT = struct.Struct("=QII")
_READ_IN = struct.Struct("=QQII")
_RELEASE_IN = struct.Struct("=Q")
_SEEK_IN = struct.Struct("=QQI")
_NUMBER = struct.Struct("=Q")
_FORGOTTEN = struct.Struct("=QQ")
_COUNT = struct.Struct("=II")
_STORE_OUT = struct.Struct("=QQII")
_NOTIFY_STORE = 4
_LENGTH = struct.Struct("=I")
_READER = struct.Struct("=32xI")
_STATFS = struct.Struct("=5Q4I24x")
_DIRECTORY_ENTRY = struct.Struct("=QQII")

HEADER_SIZE: Final = _OUT_HEADER.size
"""Bytes of a reply before its data."""

STORE_HEADER_SIZE: Final = _OUT_HEADER.size + _STORE_OUT.size
"""Bytes before the content that `put_store_header` is written to."""

READ_SIZE: Final = _IN_HEADER.size + 40
"""Bytes of the request for a READ."""


class KernelProtocolError(FormatError):
    """What came from /dev/fuse is no request of the protocol."""


class _Init(enum.IntFlag):
    """Flags of INIT: abilities that both sides must have.

    ASYNC_DIO is left out: with it a read with O_DIRECT waits in the kernel where no signal ends it
    (fs/fuse/file.c, fuse_direct_IO).
    """

    ASYNC_READ = 1 << 0
    PARALLEL_DIRECTORY_OPERATIONS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23


_WANTED = (
    _Init.ASYNC_READ | _Init.PARALLEL_DIRECTORY_OPERATIONS | _Init.MAX_PAGES | _Init.CACHE_SYMLINKS
)


class Operation(enum.IntEnum):
    """Numbers of requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46


_CHANGES = frozenset(
    {
        *(Operation.SETATTR, Operation.SYMLINK, Operation.MKNOD, Operation.MKDIR),
        *(Operation.UNLINK, Operation.RMDIR, Operation.RENAME, Operation.RENAME2),
        *(Operation.LINK, Operation.WRITE, Operation.CREATE, Operation.FALLOCATE),
    }
)


class Init(NamedTuple):
    """The kernel begins; `reply_to_init` is the answer."""

    unique: int
    major: int
    minor: int
    readahead: int
    flags: int


class Lookup(NamedTuple):
    """A name is looked up in the directory `node`; each reply with a node counts as a lookup."""

    unique: int
    node: int
    name: bytes


class Forget(NamedTuple):
    """The kernel gives up nodes: pairs of a node and a number of lookups. It gets no reply."""

    nodes: Sequence[tuple[int, int]]


class GetAttributes(NamedTuple):
    """The attributes of a node are asked for."""

    unique: int
    node: int


class ReadLink(NamedTuple):
    """The target of a symbolic link is asked for."""

    unique: int
    node: int


class Open(NamedTuple):
    """A file or directory is opened, with the flags of open(2)."""

    unique: int
    node: int
    flags: int
    directory: bool


class Read(NamedTuple):
    """Bytes of an opened file are asked for; fewer than `length` mean that the file ends there."""

    unique: int
    handle: int
    offset: int
    length: int


class ReadDirectory(NamedTuple):
    """Entries of an opened directory are asked for, from number `offset` on, in `length` bytes."""

    unique: int
    handle: int
    offset: int
    length: int


class Release(NamedTuple):
    """An opened file or directory is closed."""

    unique: int
    handle: int


class Seek(NamedTuple):
    """SEEK_DATA or SEEK_HOLE (lseek(2)) in an opened file."""

    unique: int
    handle: int
    offset: int
    whence: int


class StatFs(NamedTuple):
    """The numbers of statfs(2) are asked for."""

    unique: int


class Interrupt(NamedTuple):
    """A signal reached the process behind the request `target`. It gets no reply."""

    target: int


class Destroy(NamedTuple):
    """The file system is unmounted."""

    unique: int


class Refused(NamedTuple):
    """A request that is not served; `error` says why."""

    unique: int
    error: int


Request = (
    Init
    | Lookup
    | Forget
    | GetAttributes
    | ReadLink
    | Open
    | Read
    | ReadDirectory
    | Release
    | Seek
    | StatFs
    | Interrupt
    | Destroy
    | Refused
)


class Attributes(NamedTuple):
    """The attributes of a file.

    Attributes:
        number: of the inode.
        mode: kind and permissions, as of stat(2).
        size: bytes.
        changed: seconds since 1970.
        user, group: the owner.
        links: names that it has.
        room: bytes that it takes on a disk, as of `st_blocks`; None for `size`.
    """

    number: int
    mode: int
    size: int
    changed: int
    user: int
    group: int
    links: int = 1
    room: int | None = None


class DirectoryEntry(NamedTuple):
    """An entry of a directory: a name, the inode's number, the kind as in a mode."""

    name: bytes
    number: int
    mode: int


def parse(data: memoryview) -> Request:
    """Read one request. One whose body is damaged is `Refused` with EIO: it can be answered.

    Raises:
        KernelProtocolError: it has no whole header.
    """
    try:
        length, operation, unique, node, _, _, _, extensions, _ = _IN_HEADER.unpack_from(data)
    except struct.error as err:
        raise KernelProtocolError(tr("a request is cut off: {err}", err=err)) from err
    if length != len(data):
        return Refused(unique, errno.EIO)
    body = data[_IN_HEADER.size : length - 8 * extensions]
    try:
        return _parse_body(operation, unique, node, body)
    except (KernelProtocolError, struct.error):
        return Refused(unique, errno.EIO)


def _forget_many(body: memoryview) -> Forget:
    count, _ = _COUNT.unpack_from(body)
    size = _FORGOTTEN.size
    rest = body[_COUNT.size : _COUNT.size + count * size]
    if len(rest) != count * size:
        raise KernelProtocolError(
            tr("{count} nodes to forget take more bytes than came", count=count)
        )
    return Forget([(each, lookups) for each, lookups in _FORGOTTEN.iter_unpack(rest)])


def _parse_body(operation: int, unique: int, node: int, body: memoryview) -> Request:  # noqa: C901  one case a request
    match operation:
        case Operation.READ:
            return Read(unique, *_READ_IN.unpack_from(body)[:3])
        case Operation.LOOKUP:
            name = _name(body)
            if len(name) > MAX_NAME:
                return Refused(unique, errno.ENAMETOOLONG)
            return Lookup(unique, node, name)
        case Operation.GETATTR:
            return GetAttributes(unique, node)
        case Operation.FORGET:
            return Forget([(node, *_NUMBER.unpack_from(body))])
        case Operation.BATCH_FORGET:
            return _forget_many(body)
        case Operation.OPEN | Operation.OPENDIR:
            flags, _ = _OPEN_IN.unpack_from(body)
            return Open(unique, node, flags, operation == Operation.OPENDIR)
        case Operation.READDIR:
            return ReadDirectory(unique, *_READ_IN.unpack_from(body)[:3])
        case Operation.RELEASE | Operation.RELEASEDIR:
            return Release(unique, *_RELEASE_IN.unpack_from(body))
        case Operation.READLINK:
            return ReadLink(unique, node)
        case Operation.LSEEK:
            return Seek(unique, *_SEEK_IN.unpack_from(body))
        case Operation.STATFS:
            return StatFs(unique)
        case Operation.INTERRUPT:
            return Interrupt(*_NUMBER.unpack_from(body))
        case Operation.INIT:
            return Init(unique, *_INIT_IN.unpack_from(body))
        case Operation.DESTROY:
            return Destroy(unique)
    return Refused(unique, errno.EROFS if operation in _CHANGES else errno.ENOSYS)


def _name(body: memoryview) -> bytes:
    name, end, _ = bytes(body).partition(b"\0")
    if not end or not name:
        raise KernelProtocolError("a name is empty, or without an end")
    return name


def length_of(data: memoryview) -> int:
    """Bytes of the message that `data` begins with: of a request, a reply, or content to store."""
    (length,) = _LENGTH.unpack_from(data)
    return int(length)


def reader_of(data: memoryview) -> int:
    """The thread that waits for a request, as this system numbers it; 0 if it is none of its.

    Args:
        data: of the request, which `parse` takes.
    """
    (thread,) = _READER.unpack_from(data)
    return int(thread)


def reply_to_init(init: Init, *, readahead: int = 1 << 31) -> bytes:
    """Answer the kernel's first request.

    Args:
        readahead: bytes that the kernel reads ahead of a program at most; it may choose fewer.

    Raises:
        KernelProtocolError: the kernel is older than Linux 5.4 (protocol 7.31).
    """
    if init.major != _MAJOR or init.minor < _MINOR:
        raise KernelProtocolError(
            tr(
                "this kernel speaks version {major}.{minor} of FUSE: {major2}.{minor2} is needed",
                major=init.major,
                minor=init.minor,
                major2=_MAJOR,
                minor2=_MINOR,
            ),
            hint="take Linux 5.4 or later",
        )
    flags = init.flags & _WANTED
    body = _INIT_OUT.pack(
        *(_MAJOR, _MINOR, min(init.readahead, readahead), flags),
        *(_MAX_BACKGROUND, _MAX_BACKGROUND * 3 // 4),
        *(_MAX_WRITE, 1, _MAX_PAGES, 0, 0),
    )
    return reply(init.unique, body)


def reply(unique: int, body: bytes = b"") -> bytes:
    """A reply with what was asked for."""
    return _OUT_HEADER.pack(HEADER_SIZE + len(body), 0, unique) + body


def failed(unique: int, error: int) -> bytes:
    """A reply with an errno."""
    return _OUT_HEADER.pack(HEADER_SIZE, -error, unique)


def put_header(buffer: memoryview, unique: int, length: int) -> None:
    """Write the header of a reply with `length` bytes of data to the start of `buffer`."""
    _OUT_HEADER.pack_into(buffer, 0, HEADER_SIZE + length, 0, unique)


def put_store_header(buffer: memoryview, node: int, offset: int, length: int) -> None:
    """Write to the start of `buffer` what puts content into the kernel's cache of a file.

    The `length` bytes behind it are the file's from `offset` on. The kernel waits for each page
    that a READ is under way for: who sends this must not be who answers that READ
    (fs/fuse/dev.c, fuse_notify_store).
    """
    _OUT_HEADER.pack_into(buffer, 0, STORE_HEADER_SIZE + length, _NOTIFY_STORE, 0)
    _STORE_OUT.pack_into(buffer, _OUT_HEADER.size, node, offset, length, 0)


def found(
    unique: int, node: int, attributes: Attributes, seconds: int, *, name_seconds: int
) -> bytes:
    """The reply to a lookup; the kernel may keep attributes for `seconds`, and that this name leads
    to this node for `name_seconds`."""
    entry = _ENTRY.pack(node, 0, name_seconds, seconds, 0, 0)
    return reply(unique, entry + _pack_attributes(attributes))


def not_found(unique: int, seconds: int) -> bytes:
    """The reply to a lookup of a name that is not there; the kernel need not ask again so long."""
    return reply(unique, _ENTRY.pack(0, 0, seconds, 0, 0, 0) + bytes(_ATTRIBUTES.size))


def attributes_of(unique: int, attributes: Attributes, seconds: int) -> bytes:
    """The reply to `GetAttributes`; the kernel may keep them for `seconds`."""
    return reply(unique, _ATTRIBUTES_OUT.pack(seconds, 0, 0) + _pack_attributes(attributes))


def opened(unique: int, handle: int, flags: int = 0) -> bytes:
    """The reply to `Open`."""
    return reply(unique, _OPEN_OUT.pack(handle, flags, 0))


def sought(unique: int, offset: int) -> bytes:
    """The reply to `Seek`."""
    return reply(unique, _NUMBER.pack(offset))


def file_system(unique: int) -> bytes:
    """The reply to `StatFs`: nothing is free, and nothing is counted."""
    return reply(unique, _STATFS.pack(0, 0, 0, 0, 0, 4096, MAX_NAME, 4096, 0))


def directory(unique: int, entries: Sequence[DirectoryEntry], request: ReadDirectory) -> bytes:
    """The reply to `ReadDirectory`: as many of the directory's entries as there is room for.

    Entries with names over `MAX_NAME` are left out. EINVAL, as of getdents(2), where there is no
    room for one entry: an empty reply would say that the directory ends there.
    """
    body = bytearray()
    for at in range(request.offset, len(entries)):
        entry = entries[at]
        if len(entry.name) > MAX_NAME:
            continue
        size = -(-(_DIRECTORY_ENTRY.size + len(entry.name)) // 8) * 8
        if len(body) + size > request.length:
            if not body:
                return failed(unique, errno.EINVAL)
            break
        kind = stat.S_IFMT(entry.mode) >> 12
        body += _DIRECTORY_ENTRY.pack(entry.number, at + 1, len(entry.name), kind)
        body += entry.name.ljust(size - _DIRECTORY_ENTRY.size, b"\0")
    return reply(unique, bytes(body))


def _pack_attributes(told: Attributes) -> bytes:
    changed = max(0, told.changed)
    room = told.size if told.room is None else told.room
    return _ATTRIBUTES.pack(
        *(told.number, told.size, -(-room // 512), changed, changed, changed),
        *(0, 0, 0, told.mode, told.links, told.user, told.group, 0, 4096, 0),
    )
