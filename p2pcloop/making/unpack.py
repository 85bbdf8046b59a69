"""Unpacking the content of a container (disk image, compressed file, nested root) to a raw file."""

from __future__ import annotations

import bz2
import lzma
import struct
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, Protocol, Self, TypeVar

import zstandard

from p2pcloop.errors import FormatError, UsageError, storage_error
from p2pcloop.formats.cloop import is_cloop
from p2pcloop.formats.containers import DISK_FORMATS, describe_other, detect_container
from p2pcloop.formats.filesystem import PROBE_SIZE
from p2pcloop.making.build import Progress
from p2pcloop.making.qemu_img import check_room, start_tool, unpack_disk, with_name
from p2pcloop.units import MAX_IMAGE_SIZE
from p2pcloop.words import tr

_IN = 64 << 10
_ZSTD_IN = 2 << 10
"""Input of zstd, which has no bound for its output: 4 bytes may become 128 KiB, this 64 MiB."""

_OUT = 1 << 20
_MEMORY = 1 << 30
"""Bytes of a decoder's window at most."""

_SKIPPABLE = 0x184D2A50
"""The magic number of a frame that decoders of zstd skip, without its lowest 4 bits."""

_CHECK_ROOM = 64 << 20
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)
_NESTED = ("LiveOS/rootfs.img", "LiveOS/ext3fs.img")
_AGAIN = "fetch or copy it again"


def unpack(
    kind: str, path: Path, out: Path, progress: Progress, *, name: Path, raw: bool = False
) -> None:
    """Write the content of a container to a raw file with holes where it has zeros.

    Args:
        kind: one of `CONTAINERS`.
        path: the container.
        out: absolute; is made.
        progress: called with the bytes that are done.
        name: of the container, for messages.
        raw: take its content as a device, without looking at it.

    Raises:
        UsageError: it takes content from other files, or holds no image.
        FormatError: it is damaged or cut off.
        StorageError: there is no room for its content, or the disk refused.
        NeedsPackageError: a program that reads it is not on this system.
    """
    try:
        if kind in DISK_FORMATS:
            unpack_disk(kind, path, out, progress, name=name)
            return
        with path.open("rb") as file, SparseFile(out, name) as sparse:
            content = _decompress(kind, file, name)
            sparse.fill(content if raw else _start_checked(content, name), progress)
    except OSError as err:
        raise storage_error(tr("cannot use {path}", path=err.filename or name), err) from err


def _start_checked(content: Iterator[bytes], name: Path) -> Iterator[bytes]:
    """Refuse an archive before all of it is unpacked."""
    for number, data in enumerate(content):
        if number == 0:
            head = data[:PROBE_SIZE]
            what, hint = describe_other(head, b"")
            if what and not detect_container(head, b"") and not is_cloop(head):
                raise UsageError(
                    tr("{name} is no disk image: it holds {what}", name=name, what=what), hint=hint
                )
        yield data


class SparseFile:
    """A file that is written from start to end, with holes for zeros.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, path: Path, name: Path) -> None:
        """`name`: of the container, for messages."""
        self.size = 0
        self._path = path
        self._name = name
        self._file: BinaryIO | None = None
        self._unchecked = _CHECK_ROOM

    def __enter__(self) -> Self:
        self._file = self._path.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None, "it was entered"
        self._file.truncate(self.size)
        self._file.close()

    def fill(self, content: Iterable[bytes], progress: Progress) -> None:
        """Append all pieces; `progress` is called with the bytes so far. Errors as of `write`."""
        for data in content:
            self.write(data)
            progress(self.size)

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StorageError: there is too little room.
            FormatError: it is larger than an image may be.
        """
        assert self._file is not None, "it was entered"
        if self.size + len(data) > MAX_IMAGE_SIZE:
            raise FormatError(
                tr("{name} holds more than the 16 TiB that an image may have", name=self._name)
            )
        for at in range(0, len(data), _BLOCK):
            block = data[at : at + _BLOCK]
            if block != _ZEROS[: len(block)]:
                self._check_room(len(block))
                self._file.seek(self.size + at)
                self._file.write(block)
        self.size += len(data)

    def _check_room(self, length: int) -> None:
        self._unchecked += length
        if self._unchecked < _CHECK_ROOM:
            return
        self._unchecked = 0
        check_room(self._path.parent, _CHECK_ROOM, self._name)


class _Library(Protocol):
    """What the decompressors of zlib, bz2, lzma and zstandard have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


_Wrapped = TypeVar("_Wrapped", bound=_Library)


class _Decoder(ABC, Generic[_Wrapped]):
    """A decompressor of one member of a file.

    Attributes:
        wrapped: the library's.
    """

    def __init__(self, wrapped: _Wrapped) -> None:
        self.wrapped = wrapped

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode; yield pieces of bounded size."""


class _Zlib(_Decoder["zlib._Decompress"]):
    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self.wrapped.eof:
            yield self.wrapped.decompress(data, _OUT)
            data = self.wrapped.unconsumed_tail


class _Bounded(_Decoder[bz2.BZ2Decompressor | lzma.LZMADecompressor]):
    """bz2 and lzma, whose decoders keep the input that they have not decoded yet."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self.wrapped.decompress(data, _OUT)
        while not self.wrapped.eof and not self.wrapped.needs_input:
            yield self.wrapped.decompress(b"", _OUT)


class _ZstdFrame:
    """A frame of zstd, or one that decoders skip (RFC 8878, 3.1.2): in the form of `_Library`."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self._head = b""
        self._skip: int | None = None
        self._decoder: zstandard.ZstdDecompressionObj | None = None

    def decompress(self, data: bytes) -> bytes:
        """Decode; after `eof`, `unused_data` is what lies behind the frame."""
        if self._decoder is None and self._skip is None:
            self._head += data
            if len(self._head) < 8:  # the shortest frame of zstd has 9 bytes
                return b""
            data = self._begin()
        if self._decoder is not None:
            out = self._decoder.decompress(data)
            self.eof, self.unused_data = self._decoder.eof, self._decoder.unused_data
            return out
        assert self._skip is not None, "the frame has begun"
        self.unused_data = data[self._skip :]
        self._skip -= min(self._skip, len(data))
        self.eof = not self._skip
        return b""

    def _begin(self) -> bytes:
        """Find out which kind of frame it is; return the bytes for it."""
        magic, length = struct.unpack_from("<II", self._head)
        if magic & ~0xF == _SKIPPABLE:
            self._skip = length
            return self._head[8:]
        self._decoder = zstandard.ZstdDecompressor(max_window_size=_MEMORY).decompressobj()
        return self._head


class _Zstd(_Decoder[_ZstdFrame]):
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self.wrapped.decompress(data)


_DECODERS: dict[str, Callable[[], _Decoder[Any]]] = {
    "gz": lambda: _Zlib(zlib.decompressobj(wbits=31)),
    "bz2": lambda: _Bounded(bz2.BZ2Decompressor()),
    "xz": lambda: _Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)),
    "zst": lambda: _Zstd(_ZstdFrame()),
}


class _Members:
    """The content of a compressed file: of all its members, one after the other.

    Attributes:
        ended: whether the last one came to its end.
        behind: whether it is not the first one, and has given nothing yet.
    """

    def __init__(self, kind: str) -> None:
        self._make = _DECODERS[kind]
        self._decoder = self._make()
        self.ended = False
        self.behind = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes of the file."""
        while data:
            if self._decoder.wrapped.eof:
                # Between members there may be zeros (xz: stream padding; gzip: of tapes).
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._decoder, self.behind = self._make(), True
            for out in filter(None, self._decoder.feed(data)):
                self.behind = False
                yield out
            data = self._decoder.wrapped.unused_data if self._decoder.wrapped.eof else b""
        self.ended = self._decoder.wrapped.eof


def _decompress(kind: str, file: BinaryIO, name: Path) -> Iterator[bytes]:
    members = _Members(kind)
    try:
        for data in _pieces(file, _ZSTD_IN if kind == "zst" else _IN):
            yield from members.feed(data)
    except MemoryError as err:
        raise FormatError(tr("{name} needs too much memory to be unpacked", name=name)) from err
    except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError) as err:
        if isinstance(err, OSError) and err.errno:
            raise
        if members.behind:
            raise _no_member(name) from err
        raise FormatError(
            tr("{name} is damaged, and cannot be unpacked: {err}", name=name, err=err), hint=_AGAIN
        ) from err
    if not members.ended:
        if members.behind:
            raise _no_member(name)
        raise FormatError(
            tr("{name} is cut off: its compressed data does not end within the file", name=name),
            hint=_AGAIN,
        )


def _no_member(name: Path) -> FormatError:
    return FormatError(
        tr("{name} has junk behind its compressed data, or more that is cut off", name=name),
        hint=_AGAIN,
    )


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while data := file.read(size):
        yield data


def unpack_nested(path: Path, offset: int, out: Path, progress: Progress, *, name: Path) -> bool:
    """Write a file system that is a file in a squashfs (Fedora's live CDs) to a raw file.

    Args:
        path: a file with the squashfs in it.
        offset: of the squashfs in it.
        out: is made if there is such a file.
        progress: called with the bytes that are done.
        name: of the file, for messages.

    Returns:
        Whether there was one; else the squashfs is the root itself.

    Raises:
        FormatError: it is damaged.
        NeedsPackageError: unsquashfs is not on this system.
        StorageError: there is no room.
    """
    try:
        with path.open("rb") as file:
            fd = file.fileno()
            listed = b"".join(_unsquashfs(fd, ["-l"], offset, _NESTED, name))
            inner = [each for each in _NESTED if f"squashfs-root/{each}".encode() in listed.split()]
            if not inner:
                return False
            with SparseFile(out, name) as sparse:
                sparse.fill(_unsquashfs(fd, ["-cat"], offset, inner[:1], name), progress)
            return True
    except OSError as err:
        raise storage_error(tr("cannot use {path}", path=err.filename or name), err) from err


def _unsquashfs(
    fd: int, what: list[str], offset: int, files: tuple[str, ...] | list[str], name: Path
) -> Iterator[bytes]:
    """The output of `unsquashfs` (package squashfs-tools), in pieces."""
    command = ["unsquashfs", "-p", "1", "-o", str(offset), *what, f"/proc/self/fd/{fd}", *files]
    with (
        tempfile.TemporaryFile() as errors,
        start_tool(command, fd, package="squashfs-tools", memory=_MEMORY, errors=errors) as process,
    ):
        assert process.stdout is not None, "it is a pipe"
        try:
            yield from _pieces(process.stdout, _OUT)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            said = " ".join(errors.read(4096).decode("utf-8", "replace").split())
            said = with_name(said, name)[:300]
            raise FormatError(
                tr("{name} is damaged: unsquashfs says: {said}", name=name, said=said), hint=_AGAIN
            )
