"""The pty between a guest and a terminal or file; the guest is played by the slave's end."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from p2pcloopd.guest import console


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
        nursery.start_soon(console.pump, pty, tmp_path / "log", pieces.append)
        nursery.start_soon(guest)
    assert b"".join(pieces) == text
    assert (tmp_path / "log").read_bytes() == text


async def test_reader_that_hangs_up_does_not_end_the_guest(
    pty: console.Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    monkeypatch.setattr(console, "_STDOUT", write_end)
    pieces: list[bytes] = []
    os.write(pty.slave, b"one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.pump, pty, "stdio", pieces.append)
        while not pieces:
            await trio.testing.wait_all_tasks_blocked()
        os.write(pty.slave, b"two")
        pty.close_slave()
    assert b"".join(pieces) == b"onetwo"
    os.close(write_end)


async def test_input_from_a_pipe_and_from_a_file_is_as_it_is(
    pty: console.Pty, tmp_path: Path
) -> None:
    typed = b"\x1c\x03 ls\n"
    (tmp_path / "typed").write_bytes(typed)
    source = os.open(tmp_path / "typed", os.O_RDONLY)
    await console.forward_input(pty, source)
    os.close(source)
    assert os.read(pty.slave, 100) == typed


async def test_terminal_keys(pty: console.Pty) -> None:
    """Every key reaches the guest at once; Ctrl-backslash as Ctrl-C; then all is as it was."""
    master, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    with console.guest_keys(terminal):
        now = termios.tcgetattr(terminal)
        assert now[tty.LFLAG] & termios.ISIG
        assert now[tty.CC][termios.VINTR] == b"\x03"
        os.write(master, b"a\x1a\x1c\r")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.forward_input, pty, terminal)
            got = b""
            while len(got) < 4:
                await trio.lowlevel.wait_readable(pty.slave)
                got += os.read(pty.slave, 10)
            nursery.cancel_scope.cancel()
        assert got == b"a\x1a\x03\r"
    assert termios.tcgetattr(terminal) == before
    os.close(master)
    os.close(terminal)


async def test_window_size(pty: console.Pty) -> None:
    master, terminal = os.openpty()
    termios.tcsetwinsize(master, (50, 132))
    pty.copy_window_size(terminal)
    assert termios.tcgetwinsize(pty.slave) == (50, 132)
    os.close(master)
    os.close(terminal)
    assert not console.is_our_terminal(pty.slave)
