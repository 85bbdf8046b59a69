"""The pty between a guest and a terminal or file; the guest is played by the slave's end."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pcloopd.guest.console import console


@pytest.fixture
def pty() -> Iterator[console.Pty]:
    made = console.Pty()
    yield made
    made.close()


async def test_output_to_a_file_ends_with_the_guest(pty: console.Pty, tmp_path: Path) -> None:
    text = b"boot\r\n" * 200
    pieces: list[bytes] = []

    async def guest() -> None:
        os.write(pty.slave, text)
        pty.close_slave()

    async with trio.open_nursery() as nursery:
        sink = console.Sink(tmp_path / "log")
        nursery.start_soon(console.pump, pty, sink, pieces.append)
        nursery.start_soon(guest)
    sink.close()
    assert b"".join(pieces) == text
    assert (tmp_path / "log").read_bytes() == text


async def test_several_may_type_while_the_guest_does_not_read(pty: console.Pty) -> None:
    texts = [letter * 20_000 for letter in (b"a", b"b")]
    typed = b""
    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(pty.send, text)
        await wait_all_tasks_blocked()
        while len(typed) < 40_000:
            await trio.lowlevel.wait_readable(pty.slave)
            typed += os.read(pty.slave, 1 << 16)
    assert typed in (texts[0] + texts[1], texts[1] + texts[0])
    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(pty.send, text)
        await wait_all_tasks_blocked()
        pty.release()


async def test_a_pipe_that_is_full_stops_nothing_but_its_writer() -> None:
    read, write = os.pipe()
    sink = console.Sink(write)
    data = bytes(1 << 20)
    got = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.write, data)
        await wait_all_tasks_blocked()
        while got < len(data):
            await trio.lowlevel.wait_readable(read)
            got += len(os.read(read, 1 << 16))
    for fd in (read, write):
        os.close(fd)


async def test_a_file_that_takes_nothing_is_named() -> None:
    sink = console.Sink(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left") as caught:
        await sink.write(b"boot")
    sink.close()
    assert caught.value.filename == "/dev/full"


async def test_a_standard_output_that_takes_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(console, "_STDOUT", full)
    with pytest.raises(OSError, match="No space left") as caught:
        await console.Sink("stdio").write(b"boot")
    os.close(full)
    assert caught.value.filename == "the standard output"


async def test_reader_that_hangs_up_does_not_end_the_guest(
    pty: console.Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    monkeypatch.setattr(console, "_STDOUT", write_end)
    pieces: list[bytes] = []
    os.write(pty.slave, b"one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.pump, pty, console.Sink("stdio"), pieces.append)
        while not pieces:
            await trio.testing.wait_all_tasks_blocked()
        os.write(pty.slave, b"two")
        pty.close_slave()
    assert b"".join(pieces) == b"onetwo"
    os.close(write_end)


def test_terminal_keys() -> None:
    """Every key is text, and what the terminal was before comes back; SIGCONT's wish, too."""
    master, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    with console.guest_keys(terminal) as set_up:
        now = termios.tcgetattr(terminal)
        os.write(master, b"a\x03\x1a\x1c\x13\x04\r")
        assert os.read(terminal, 10) == b"a\x03\x1a\x1c\x13\x04\r"
        termios.tcsetattr(terminal, termios.TCSANOW, before)
        set_up()
        assert termios.tcgetattr(terminal) == now
    assert termios.tcgetattr(terminal) == before
    os.close(master)
    os.close(terminal)


def test_a_terminal_that_is_gone_is_no_error() -> None:
    master, terminal = os.openpty()
    with console.guest_keys(terminal) as set_up:
        os.close(master)
        set_up()
    os.close(terminal)


async def test_window_size(pty: console.Pty) -> None:
    master, terminal = os.openpty()
    termios.tcsetwinsize(master, (50, 132))
    pty.copy_window_size(terminal)
    assert termios.tcgetwinsize(pty.slave) == (50, 132)
    os.close(master)
    os.close(terminal)
    assert not console.is_our_terminal(pty.slave)


async def test_a_bell_rings_once_and_not_before_a_program_listens() -> None:
    """UML may lose what is typed before; the guest's terminal echoes what is typed later."""
    for asked_first in (True, False):
        consoles = console.UnseenConsoles([2], 15)
        guest = consoles.fds[15]
        os.set_blocking(guest, False)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consoles.drop_output)
                if asked_first:
                    consoles.ring()
                    with pytest.raises(BlockingIOError):
                        os.read(guest, 10)
                os.write(guest, b"\n")
                if not asked_first:
                    await wait_all_tasks_blocked()
                    with pytest.raises(BlockingIOError):
                        os.read(guest, 10)
                    consoles.ring()
                await trio.lowlevel.wait_readable(guest)
                assert os.read(guest, 10) == b"\n"
                os.write(guest, b"\r\n")  # the echo
                os.write(consoles.fds[2], b"of another console")
                consoles.ring()
                await wait_all_tasks_blocked()
                with pytest.raises(BlockingIOError):
                    os.read(guest, 10)
                nursery.cancel_scope.cancel()
        finally:
            consoles.close()
