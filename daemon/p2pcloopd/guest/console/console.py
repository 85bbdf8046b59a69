"""The guest's console: a pty whose slave is UML's con1, bridged to this process's terminal or a
file."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import stat
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

import trio

from p2pcloopd.guest.console.screen_filter import ScreenFilter, takes_utf8

CHUNK = 4096
"""Bytes of one write: a pipe that polls as writable takes PIPE_BUF = 4096 without blocking."""

_PIECES = 16
"""Pieces of output after which other tasks have their turn."""

_STDOUT = 1
_DEFAULT_SIZE = struct.pack("4H", 24, 80, 0, 0)


class Pty:
    """A pseudo terminal: UML has the slave; this process has the master, which does not block."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        # UML sets it raw as well, but only once its console driver is up.
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self._sending = trio.Lock()  # one task at a time may wait until it can write
        self._is_released = False
        self.set_size(_DEFAULT_SIZE)

    def close_slave(self) -> None:
        """Let go of the slave once UML has inherited it, so that its end is seen here."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close(self) -> None:
        """Close both ends."""
        self.close_slave()
        os.close(self.master)

    def release(self) -> None:
        """Have all who wait to send return: the guest reads no more, and this will be closed."""
        self._is_released = True
        trio.lowlevel.notify_closing(self.master)

    async def receive(self) -> bytes:
        """Return what the guest prints next; empty once no process has the slave open."""
        while True:
            try:
                return os.read(self.master, CHUNK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.master)
            except OSError as err:
                if err.errno != errno.EIO:
                    raise
                return b""

    async def send(self, data: bytes) -> None:
        """Type `data` on the guest's keyboard, behind what others type; waits while the guest does
        not read."""
        async with self._sending:
            await self._send(data)

    async def _send(self, data: bytes) -> None:
        while data and not self._is_released:
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self.master)
                except trio.ClosedResourceError:  # the guest has ended
                    return
            except OSError as err:
                if err.errno != errno.EIO:  # the guest has ended
                    raise
                return

    def copy_window_size(self, terminal: int) -> None:
        """Give the guest's console the size of `terminal`; UML tells its processes (SIGWINCH)."""
        with suppress(OSError):
            size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
            if any(size):
                self.set_size(size)

    def set_size(self, size: bytes) -> None:
        """Give the guest's console a size: a struct winsize (tty_ioctl(4))."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)


class UnseenConsoles:
    """The guest's consoles that the user does not see: no key is typed there, and all output is
    dropped. Images have logins on tty2 to tty6.

    UML itself can have a console that leads nowhere, `null`. But its kernel then complains at
    length on the visible console: it waits on each open descriptor, and cannot wait on /dev/null.

    Attributes:
        fds: the guest's ends, by the number of the console.
    """

    def __init__(self, numbers: Iterable[int], bell: int) -> None:
        """Make them.

        Args:
            numbers: of the consoles.
            bell: of one more, on which `ring` types.
        """
        self._is_wanted = self._is_heard = self._has_rung = False
        self._ours, theirs = trio.socket.socketpair()
        self._bell, guests_bell = trio.socket.socketpair()
        with theirs, guests_bell:
            # Each console needs a descriptor of its own: the kernel takes none twice.
            self.fds = {number: os.dup(theirs.fileno()) for number in numbers}
            self.fds[bell] = os.dup(guests_bell.fileno())

    def ring(self) -> None:
        """Type a line on the console of the bell, once the program there has printed something.

        UML may lose what is typed before a program has opened the console: it keeps that back until
        more is typed.
        """
        self._is_wanted = True
        if self._is_heard and not self._has_rung:
            self._has_rung = True
            os.write(self._bell.fileno(), b"\n")

    async def drop_output(self) -> None:
        """Read and drop what the guest prints there, so that no program in it waits."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drop, self._ours, lambda: None)
            nursery.start_soon(_drop, self._bell, self._hear)

    def _hear(self) -> None:
        self._is_heard = True
        if self._is_wanted:
            self.ring()

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self._bell.close()
        for fd in self.fds.values():
            os.close(fd)


async def _drop(end: trio.socket.SocketType, hear: Callable[[], None]) -> None:
    while await end.recv(CHUNK):
        hear()


class Sink:
    """Where a guest's output goes: a descriptor of this process, or a file that is written anew.

    Attributes:
        is_open: whether output is still taken.
    """

    def __init__(self, console: Literal["stdio"] | Path | int) -> None:
        self._is_ours = not isinstance(console, Path)
        self.is_open = True
        self._name = "the standard output" if console == "stdio" else str(console)
        if isinstance(console, Path):
            self._fd = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        else:
            sys.stdout.flush()
            self._fd = _STDOUT if console == "stdio" else console
        self._writable = select.poll()
        self._writable.register(self._fd, select.POLLOUT)
        # A terminal gets only what draws on its screen.
        self._screen = ScreenFilter(utf8=takes_utf8()) if os.isatty(self._fd) else None

    async def write(self, data: bytes) -> None:
        """Write all of it.

        A standard output that is closed early, or a terminal that is gone, does not end the guest:
        the rest is dropped.
        """
        if self._screen is not None:
            data = self._screen.feed(data)
        left = memoryview(data)
        while left and self.is_open:
            if not self._writable.poll(0):  # as a rule it takes what a guest prints at once
                await ready(trio.lowlevel.wait_writable, self._fd)
            try:
                left = left[os.write(self._fd, left[:CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError as err:
                if not self._is_ours or err.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                    err.filename = self._name
                    raise
                self.is_open = False

    def close(self) -> None:
        """Leave a terminal's screen as it was, and close what is a file."""
        if self._screen is not None:
            with suppress(OSError):  # the terminal may be gone
                os.write(self._fd, self._screen.undo())
        if not self._is_ours:
            os.close(self._fd)


class Screen(Protocol):
    """Takes what a guest prints, as `Sink` does."""

    async def write(self, data: bytes) -> None:
        """Take all of it."""


class Printing(Protocol):
    """A console that a guest prints on."""

    async def receive(self) -> bytes:
        """Return what is printed next; empty once the guest has ended."""


async def pump(pty: Printing, sink: Screen, on_output: Callable[[bytes], None]) -> None:
    """Carry the guest's output to `sink` and to `on_output` until the guest has ended."""
    for pieces in itertools.count(1):
        if not (data := await pty.receive()):
            return
        on_output(data)
        await sink.write(data)
        if not pieces % _PIECES:  # a guest that prints on and on keeps no other task waiting
            await trio.lowlevel.checkpoint()


async def ready(wait: Callable[[int], object], fd: int) -> None:
    """Wait until `fd` is ready; one that epoll does not take (a regular file) always is."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            await wait(fd)  # type: ignore[misc]  # both of trio's functions are coroutines
            return
    except OSError as err:  # a device without poll, such as /dev/null; or its use will fail
        if err.errno not in (errno.EPERM, errno.EBADF):
            raise
    await trio.lowlevel.checkpoint()


async def read_ready(fd: int, size: int) -> bytes:
    """Wait until `fd` has something to read; at most `size` bytes of it, or none at its end.

    Raises:
        OSError: it is closed, or cannot be read, or is a terminal that is gone.
    """
    while True:
        await ready(trio.lowlevel.wait_readable, fd)
        try:
            return os.read(fd, size)
        except BlockingIOError:
            continue


def is_our_terminal(fd: int) -> bool:
    """Whether `fd` is a terminal in whose foreground this process runs: touching it from the
    background would stop this process."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def guest_keys(fd: int) -> Iterator[Callable[[], None]]:
    """Pass every key of the terminal `fd` on as it is typed, and restore the terminal's settings
    at the end.

    Yields:
        A function to call after SIGCONT: it makes the settings again that a shell has changed.
    """
    before = termios.tcgetattr(fd)
    wanted = termios.tcgetattr(fd)
    # As tty.setraw does, but the bytes of the terminal keep their parity and size.
    wanted[tty.IFLAG] &= ~(
        termios.BRKINT | termios.ICRNL | termios.IGNCR | termios.INLCR | termios.ISTRIP
        | termios.IXON
    )  # fmt: skip
    # The guest's own terminal driver has made its line ends already.
    wanted[tty.OFLAG] &= ~termios.OPOST
    wanted[tty.LFLAG] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN | termios.ISIG)
    wanted[tty.CC][termios.VMIN], wanted[tty.CC][termios.VTIME] = 1, 0

    def set_up() -> None:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(fd, termios.TCSANOW, wanted)

    set_up()
    try:
        yield set_up
    finally:
        with suppress(termios.error):
            # Unread input was meant for the guest: keys, and the terminal's answers to it.
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)
