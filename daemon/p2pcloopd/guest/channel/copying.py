"""Copies files and directories between this machine and a guest, through commands in the guest.

What a copy makes of a name is as with `podman cp`: a directory that is there gets the source as a
part of it, a name that is not there becomes the copy, and a source that ends with `/.` is the
content of a directory.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

import trio

from p2pcloop.client.progress import progress_bar
from p2pcloop.errors import (
    FormatError,
    GuestError,
    MismatchError,
    NotHereError,
    StorageError,
    storage_error,
)
from p2pcloop.store.file_facts import set_mode
from p2pcloop.words import tr
from p2pcloopd.guest.channel.tree import Unpacker, directories_below, pack_tree, read_file
from p2pcloopd.guest.console.console import read_ready
from p2pcloopd.guest.system.scripts import script

STANDARD_STREAM = "-"
"""A source that is the standard input, a target that is the standard output: of files alone."""

_STDIN, _STDOUT = 0, 1
_PIECE = 1 << 16
_BLOCK = 4096
"""Bytes of the blocks in which copy-in.sh takes the names of directories."""

_MAX_SAID = 4096
_MAX_HEAD = 64
_NOT_THERE, _OTHER_KIND = 3, 4
_PERMISSIONS = 0o777

LeaveOut = Callable[[str], None]
"""Told what is not copied, and why."""


class Command(Protocol):
    """A command in a guest, as `RemoteCommand` is."""

    async def write(self, data: bytes) -> bool: ...

    async def end_input(self) -> None: ...

    async def read(self, *, error: bool) -> bytes: ...

    async def wait(self) -> int: ...


class Start(Protocol):
    """Runs a script in a guest, by busybox, as `remote_command` does."""

    def __call__(self, words: Sequence[bytes], /) -> AbstractAsyncContextManager[Command]: ...


async def copy_out(start: Start, source: str, target: str, leave_out: LeaveOut) -> None:
    """Copy from a guest to this machine.

    Args:
        start: runs a script in the guest.
        source: a path in the guest.
        target: a path of this machine, or `-` for the standard output.
        leave_out: told what is not copied.

    Raises:
        NotHereError: there is no such file in the guest, or no directory for it here.
        MismatchError: a file was to replace a directory, or the other way round.
        FormatError: the guest sent something else.
        StorageError: this machine's system refused.
        GuestError: the guest could not read it.
    """
    receiver = _Receiver(source, target, leave_out)
    words = [script("copy-out").encode(), b"sh", os.fsencode(source)]
    try:
        with _copying(shown=target != STANDARD_STREAM) as count:
            async with start(words) as command:
                await command.end_input()
                code, said = await _finish(command, lambda data: receiver.feed(count(data)))
            if code:
                _raise(code, said, "read")
        receiver.finish()
    finally:
        receiver.close()


async def copy_in(start: Start, source: str, target: str, leave_out: LeaveOut) -> None:
    """Copy from this machine to a guest; arguments and errors are those of `copy_out`. The source
    `-` is the standard input."""
    facts, data = _outgoing(source, leave_out)
    words = [script("copy-in"), "sh", target, *facts]
    with _copying() as count:
        async with start([os.fsencode(word) for word in words]) as command:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, command, data, count)
                code, said = await _finish(command, lambda _data: None)
                nursery.cancel_scope.cancel()
            if code:
                _raise(code, said, "write")


def _outgoing(source: str, leave_out: LeaveOut) -> tuple[list[str], AsyncGenerator[bytes, None]]:
    """What copy-in.sh is told of a source, behind the target: kind, name, mode and size. And its
    content."""
    if source == STANDARD_STREAM:
        return ["file", "", "", ""], _standard_input()
    path = Path(source)
    try:
        found = path.stat()
    except OSError as err:
        raise NotHereError(
            tr("cannot copy {source}: {why}", source=source, why=err.strerror)
        ) from err
    name = posixpath.basename(posixpath.normpath(path.absolute()))
    mode = f"{stat.S_IMODE(found.st_mode):o}"
    if stat.S_ISDIR(found.st_mode):
        kind = "content" if _names_content(source) else "directory"
        names = _padded_names(path)
        content = chain(_slices(names), pack_tree(path, leave_out))
        return [kind, name, mode, str(len(names) // _BLOCK)], _files(content)
    if stat.S_ISREG(found.st_mode):
        size = found.st_size
        return ["file", name, mode, str(size)], _files(read_file(path, size))
    raise MismatchError(tr("{source} is neither a file nor a directory", source=source))


def _padded_names(top: Path) -> bytes:
    """The directories below `top`, as copy-in.sh takes them."""
    try:
        names = b"".join(os.fsencode(name) + b"\0" for name in directories_below(top))
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=err.filename), err) from err
    return names + bytes(-len(names) % _BLOCK)


def _slices(data: bytes) -> Iterator[bytes]:
    return (data[begin : begin + _PIECE] for begin in range(0, len(data), _PIECE))


async def _files(data: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces of files, which never keep this process waiting for long."""
    try:
        for piece in data:
            yield piece
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=err.filename), err) from err


async def _standard_input() -> AsyncGenerator[bytes, None]:
    while True:
        try:
            data = await read_ready(_STDIN, _PIECE)
        except OSError as err:
            raise storage_error("cannot read the standard input", err) from err
        if not data:
            return
        yield data


@contextmanager
def _copying(*, shown: bool = True) -> Iterator[Callable[[bytes], bytes]]:
    """Yield a function that counts data for the progress that is shown, and returns it."""
    done = 0
    with progress_bar("copying", quiet=not shown) as progress:

        def count(data: bytes) -> bytes:
            nonlocal done
            done += len(data)
            progress(done)
            return data

        yield count


async def _send(
    command: Command, data: AsyncGenerator[bytes, None], count: Callable[[bytes], bytes]
) -> None:
    async with aclosing(data):
        async for piece in data:
            if not await command.write(count(piece)):  # it has ended, and says why
                return
    await command.end_input()


async def _finish(command: Command, take: Callable[[bytes], None]) -> tuple[int, str]:
    """Hand on what a command prints until it has ended; its exit code and complaints."""
    said = b""

    async def listen() -> None:
        nonlocal said
        while data := await command.read(error=True):
            said = (said + data)[:_MAX_SAID]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        while data := await command.read(error=False):
            take(data)
        code = await command.wait()
    return code, said.decode(errors="replace").strip()


def _raise(code: int, said: str, what: str) -> NoReturn:
    """Raise what a script in a guest has ended with."""
    if code == _NOT_THERE:
        raise NotHereError(tr("the guest cannot {what} it: {said}", what=what, said=said))
    if code == _OTHER_KIND:
        raise MismatchError(tr("the guest cannot {what} it: {said}", what=what, said=said))
    if os.strerror(errno.ENOSPC) in said:
        raise StorageError(
            tr("the guest has no room for it: {said}", said=said),
            errno=errno.ENOSPC,
            hint="what had come by then is there",
        )
    raise GuestError(
        tr(
            "the guest could not {what} all of it: {said}",
            what=what,
            said=said or tr("exit code {code}", code=code),
        )
    )


class _Receiver:
    """Makes files of this machine of what copy-out.sh prints."""

    def __init__(self, source: str, target: str, leave_out: LeaveOut) -> None:
        self._source = source
        self._target = target
        self._leave_out = leave_out
        self._head: bytes | None = b""
        self._file: BinaryIO | None = None
        self._new: Path | None = None
        self._unpacker: Unpacker | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes; errors as for `copy_out`."""
        with self._written():
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._head is not None:
            head, newline, data = (self._head + data).partition(b"\n")
            if len(head) > _MAX_HEAD:
                raise FormatError("the guest sent something else than a file")
            self._head = None if newline else head
            if not newline:
                return
            self._begin(head.split())
        if self._unpacker is not None:
            self._unpacker.feed(data)
        elif self._file is not None:
            self._file.write(data)

    def finish(self) -> None:
        """Record that all has come; errors as for `copy_out`."""
        if self._head is not None:
            raise FormatError("the guest sent nothing")
        with self._written():
            if self._unpacker is not None:
                self._unpacker.finish()
            elif self._file is not None:
                self._file.flush()
        self._new = None

    def close(self) -> None:
        """Close what is open. A new file that is not complete is removed."""
        if self._unpacker is not None:
            self._unpacker.close()
        if self._file is not None:
            with suppress(OSError):  # it was told at `finish`
                self._file.close()
        if self._new is not None:
            self._new.unlink(missing_ok=True)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            target = "the standard output" if self._target == STANDARD_STREAM else self._target
            named = os.fsdecode(err.filename) if isinstance(err.filename, str | bytes) else target
            raise storage_error(tr("cannot write {named}", named=named), err) from err

    def _begin(self, words: list[bytes]) -> None:
        match words:
            case [b"file", mode] if mode.isdigit() and not mode.strip(b"01234567"):
                self._open_file(int(mode, 8) & _PERMISSIONS)
            case [b"directory"]:
                self._open_directory()
            case _:
                raise FormatError("the guest sent something else than a file")

    def _open_file(self, mode: int) -> None:
        if self._target == STANDARD_STREAM:
            self._file = open(_STDOUT, "wb", closefd=False)  # noqa: SIM115  as below
            return
        path = Path(self._target)
        if path.is_dir():
            path /= self._name()
        elif self._target.endswith("/"):
            raise NotHereError(tr("there is no directory {target}", target=self._target))
        if path.is_dir():
            raise MismatchError(tr("{path} is a directory, and cannot become a file", path=path))
        is_new = not os.path.lexists(path)
        self._file = open(path, "wb")  # noqa: SIM115  closed by `close`
        if is_new:
            self._new = path
            set_mode(self._file.fileno(), mode)

    def _open_directory(self) -> None:
        if self._target == STANDARD_STREAM:
            raise MismatchError(
                tr("{source} is a directory, which is no one stream of bytes", source=self._source),
                hint="in a guest that runs, `p2pcloop exec NAME -- tar -cf - -C PATH .` makes one"
                " of it",
            )
        path = Path(self._target)
        if path.is_dir() and not _names_content(self._source):
            path /= self._name()
        is_new = not path.is_dir()
        if is_new:
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                raise MismatchError(
                    tr("{path} is no directory, and cannot become one", path=path)
                ) from None
            except FileNotFoundError:
                raise NotHereError(
                    tr("there is no directory {parent}", parent=path.parent)
                ) from None
        self._unpacker = Unpacker(path, self._leave_out, is_new=is_new)

    def _name(self) -> str:
        return posixpath.basename(posixpath.normpath(self._source))


def _names_content(source: str) -> bool:
    """Whether a source means the content of a directory, not the directory."""
    return source in (".", "/") or source.endswith("/.")
