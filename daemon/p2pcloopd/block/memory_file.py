"""The memory file of a resumed guest: a file system of FUSE that is one file, without a name.

It is mounted, opened and unmounted at once, before the guest's machine starts: that gets the open
file, and opens it anew as /proc/self/fd/N. So no path leads there, and a process that is killed
leaves no mount behind: the kernel ends the file system when the last descriptor of /dev/fuse is
closed.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.errors import UsageError, storage_error
from p2pcloop.frozen import dataclass
from p2pcloop.protocol import fuse
from p2pcloopd.block.memory_requests import make_table
from p2pcloopd.fusermount import check_device, is_dead, mount, mounts_of, unmount

_NAME = "p2pcloop-memory"
_HELD_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FOREVER = 1 << 40
"""Seconds that the kernel may keep attributes: they never change."""


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """The descriptors of a memory file.

    Attributes:
        size: bytes.
        device: of /dev/fuse. The file lives while a process has it open.
        requests: of the table of requests (memory_requests.py).
        file: of the open file, for the guest's machine. The server of the file must not read it,
            nor have it mapped: a process that waits for its own answer cannot be killed.
    """

    size: int
    device: int
    requests: int
    file: int


@contextmanager
def open_memory_file(folder: Path, size: int, *, everyone: bool) -> Iterator[MemoryFile]:
    """Make a memory file, which is there until the context ends. Its reads wait for a server.

    No other thread may fork meanwhile, nor does this take long.

    Args:
        folder: that no other user can enter; it has a file while this begins.
        size: bytes, a multiple of 4096.
        everyone: other users may open it as well, as /proc/self/fd/N. (A machine that root starts
            runs as another user.)

    Raises:
        NeedsPackageError: there is no fusermount3 or no /dev/fuse.
        UsageError: fusermount3 refuses.
        KernelProtocolError: the kernel is too old.
        StorageError: the system refuses.
    """
    check_device()
    _clean_up()
    requests = make_table()
    try:
        device, file = _mounted(folder / "memory", size, everyone=everyone)
    except BaseException:
        os.close(requests)
        raise
    try:
        yield MemoryFile(size, device, requests, file)
    finally:
        # The device first: then nothing that is still to be answered is waited for.
        for fd in (device, file, requests):
            os.close(fd)


def _clean_up() -> None:
    """Unmount what a process left that was killed while it mounted."""
    for path in mounts_of(f"fuse.{_NAME}"):
        if is_dead(path):
            # Another process may clean up, too; or it is another user's.
            with suppress(UsageError, OSError):
                unmount(path)
                path.unlink()


def _mounted(path: Path, size: int, *, everyone: bool) -> tuple[int, int]:
    """Mount, open and unmount; return the descriptors of /dev/fuse and of the open file."""
    path.touch(0o600)
    try:
        device = mount(path, everyone=everyone, name=_NAME, options=("noexec",))
        try:
            return device, _opened(device, path, size)
        except BaseException:
            os.close(device)
            raise
        finally:
            unmount(path)
    finally:
        path.unlink()


def _opened(device: int, path: Path, size: int) -> int:
    """Open the mounted file in a thread, and answer here what the kernel asks for that."""
    opened: list[int | OSError] = []
    done = os.eventfd(0, os.EFD_CLOEXEC)

    def open_file() -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # The kernel tells of each close unless that was refused once. Later on, a process that
            # is being forked must not wait for an answer to it.
            os.close(os.dup(fd))
            # The kernel does not know the size before it has asked. A push would give the file the
            # size that it has up to there, and who reads behind that would get SIGBUS.
            assert os.fstat(fd).st_size == size
            opened.append(fd)
        except OSError as err:
            opened.append(err)
        os.eventfd_write(done, 1)

    thread = threading.Thread(target=open_file)
    try:
        with _signals_held():
            thread.start()
            try:
                _answer_until(done, device, size)
            finally:
                thread.join()
                os.close(done)
    except BaseException:
        for fd in opened:
            if isinstance(fd, int):
                os.close(fd)
        raise
    (found,) = opened
    if isinstance(found, OSError):
        raise storage_error("cannot open the memory file", found)
    return found


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back for the moment. A Ctrl-C would leave the thread above without an answer,
    and who began it waits for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer_until(done: int, device: int, size: int) -> None:
    """Answer the kernel until `done` can be read."""
    data = memoryview(bytearray(fuse.BUFFER_SIZE))
    poll = select.poll()
    poll.register(device, select.POLLIN)
    poll.register(done, select.POLLIN)
    while (done, select.POLLIN) not in poll.poll():
        request = fuse.parse(data[: os.readv(device, [data])])
        try:
            answer = answer_for(request, size)
        except fuse.KernelProtocolError:
            assert isinstance(request, fuse.Init)
            os.write(device, fuse.failed(request.unique, errno.EPROTO))
            raise
        if answer is not None:
            os.write(device, answer)


def answer_for(request: fuse.Request, size: int) -> bytes | None:
    """Return the answer to a request other than READ; None if it gets none.

    Raises:
        KernelProtocolError: the kernel is too old.
    """
    match request:
        case fuse.Init():
            # A page at a time: else the kernel reads much around each page that a guest touches.
            return fuse.reply_to_init(request, readahead=0)
        case fuse.GetAttributes(unique):
            mode = stat.S_IFREG | 0o600
            attributes = fuse.Attributes(fuse.ROOT, mode, size, 0, os.geteuid(), os.getegid())
            return fuse.attributes_of(unique, attributes, _FOREVER)
        case fuse.Open(unique):
            return fuse.opened(unique, 0, fuse.KEEP_CACHE)
        case fuse.Release(unique) | fuse.Destroy(unique):
            return fuse.reply(unique)
        case fuse.StatFs(unique):
            return fuse.file_system(unique)
        case fuse.Refused(unique, error):
            return fuse.failed(unique, error)
        case fuse.Forget() | fuse.Interrupt():
            return None
        case _:
            return fuse.failed(request.unique, errno.ENOSYS)
