"""Input of a guest: when it is typed, and what its end brings. The guest is a script: what it shows
for what it gets."""

from __future__ import annotations

import os
import select
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloopd.guest.console.console import Pty
from p2pcloopd.guest.console.escape import Command
from p2pcloopd.guest.console.keyboard import Keyboard
from p2pcloopd.guest.console.prompts import PromptWatch


class FakeGuest(Pty):
    """What a guest shows after each line that it gets, and what it got."""

    def __init__(self, **answers: str) -> None:
        self.watch = PromptWatch()
        self.got = b""
        self._answers = answers

    def show(self, text: str) -> None:
        self.watch.take(text.encode())

    async def send(self, data: bytes) -> None:
        self.got += data
        for line in data.decode().splitlines(keepends=True):
            if line.endswith(("\n", "\x04")):
                self.show(line.replace("\n", "\r\n").replace("\x04", ""))
                self.show(self._answers.get(line.strip(" \n"), ""))


@contextmanager
def piped(data: bytes) -> Iterator[int]:
    read_end, write_end = os.pipe()
    os.write(write_end, data)
    os.close(write_end)
    yield read_end
    os.close(read_end)


@asynccontextmanager
async def typed_on(guest: FakeGuest, keyboard: Keyboard) -> AsyncIterator[trio.Event]:
    """A guest that input is typed for; the event tells that it has nothing more to do."""
    done = trio.Event()

    async def type_on() -> None:
        await keyboard.type_on(guest, guest.watch)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyboard.read)
        nursery.start_soon(type_on)
        await wait_all_tasks_blocked()
        yield done
        nursery.cancel_scope.cancel()


async def test_input_is_held_until_a_prompt_stands(autojump_clock: MockClock) -> None:
    guest = FakeGuest(**{"uname -a": "Linux\r\n# "})
    with piped(b"uname -a\npoweroff\n") as fd:
        async with typed_on(guest, Keyboard(fd)) as done:
            guest.show("Booting\r\ndemo login: root (automatic login)\r\n")
            await trio.sleep(1000)
            assert guest.got == b""
            guest.show("# ")
            await trio.sleep(1)
            assert guest.got == b"uname -a\npoweroff\n"
            assert not done.is_set()


async def test_a_name_and_a_password_wait_for_their_prompts(autojump_clock: MockClock) -> None:
    guest = FakeGuest(root="Password: ", secret="Last login: never\r\n")
    with piped(b"root\nsecret\nls\n") as fd:
        async with typed_on(guest, Keyboard(fd)):
            guest.show("demo login: ")
            await trio.sleep(100)
            assert guest.got == b"root\nsecret\n", "the shell's prompt is not there yet"
            guest.show("# ")
            await trio.sleep(1)
            assert guest.got == b"root\nsecret\nls\n"


async def test_a_command_that_reads_gets_what_follows(autojump_clock: MockClock) -> None:
    guest = FakeGuest(**{"\x04": "# "})
    lines = b"".join(b"line %d\n" % n for n in range(1000))
    with piped(b"cat > f\n" + lines) as fd:
        async with typed_on(guest, Keyboard(fd)) as done:
            guest.show("# ")
            await done.wait()
    assert guest.got == b"cat > f\n" + lines + b"\x04", "told that there is no more"


async def test_a_shell_that_is_slow_gets_no_more_than_its_line(autojump_clock: MockClock) -> None:
    """Else it takes what the line's command should read."""

    class Slow(FakeGuest):
        async def send(self, data: bytes) -> None:
            self.got += data

    guest = Slow()
    with piped(b"cat\nread by cat\n") as fd:
        async with typed_on(guest, Keyboard(fd)):
            guest.show("# ")
            await trio.sleep(2)
            assert guest.got == b"cat\n"
            guest.show("cat")
            await trio.sleep(2)
            assert guest.got == b"cat\n"
            guest.show("\r\n")
            await trio.sleep(1)
            assert guest.got == b"cat\nread by cat\n"


async def test_the_last_line_needs_no_end(autojump_clock: MockClock) -> None:
    guest = FakeGuest(ls="a b\r\n# ")
    with piped(b"ls") as fd:
        async with typed_on(guest, Keyboard(fd)) as done:
            guest.show("# ")
            await done.wait()
    assert guest.got == b"ls\n", "a shell at its prompt is not logged out"


@pytest.mark.parametrize("prompt", ["# ", "demo login: ", "λ "])
async def test_no_input_ends_a_guest_at_its_prompt(prompt: str, autojump_clock: MockClock) -> None:
    guest = FakeGuest()
    with piped(b"") as fd:
        async with typed_on(guest, Keyboard(fd)) as done:
            await trio.sleep(1000)
            assert not done.is_set()
            guest.show(f"Welcome\r\n{prompt}")
            await done.wait()
    assert guest.got == b""


async def test_input_that_cannot_be_read_has_ended(autojump_clock: MockClock) -> None:
    guest = FakeGuest()
    nohup = os.open(os.devnull, os.O_WRONLY)
    async with typed_on(guest, Keyboard(nohup)) as done:
        guest.show("# ")
        await done.wait()
    os.close(nohup)


async def test_a_guest_that_is_busy_is_left_alone_until_its_prompt(
    autojump_clock: MockClock,
) -> None:
    guest = FakeGuest()
    with piped(b"make\n") as fd:
        async with typed_on(guest, Keyboard(fd)) as done:
            guest.show("# ")
            await trio.sleep(1000)
            assert guest.got == b"make\n\x04"
            assert not done.is_set()
            guest.show("done\r\n# ")
            await done.wait()


async def test_a_reboot_holds_what_is_left(autojump_clock: MockClock) -> None:
    first, second = FakeGuest(), FakeGuest(ls="a\r\n# ")
    with piped(b"reboot\nls\n") as fd:
        keyboard = Keyboard(fd)
        first._answers["reboot"] = "rebooting: "
        async with typed_on(first, keyboard):
            first.show("# ")
            await trio.sleep(0.5)
            assert first.got == b"reboot\n"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keyboard.type_on, second, second.watch)
            await trio.sleep(100)
            assert second.got == b""
            second.show("# ")
        assert second.got == b"ls\n"


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


async def test_a_terminals_keys_are_held_but_those_that_act_at_once(
    autojump_clock: MockClock,
) -> None:
    guest, commands = FakeGuest(), list[Command]()
    with terminal() as (fd, keys):
        async with typed_on(guest, Keyboard(fd, on_command=commands.append)):
            os.write(keys, b"ls\r\x03\x1a\x1c-l\x1ds\x1d?")
            await trio.sleep(100)
            assert guest.got == b"\x03\x1a\x1c"
            assert commands == ["shutdown", "help"]
            guest.show("# ")
            await trio.sleep(1)
            assert guest.got == b"\x03\x1a\x1cls\r-l"
            for key in (b"\x03", b"a", b"\x1d\x1d"):
                os.write(keys, key)
                await trio.sleep(0.001)
            assert guest.got.endswith(b"\x03a\x1d"), "from its prompt on nothing is held"


async def test_what_is_held_can_be_sent(autojump_clock: MockClock) -> None:
    guest = FakeGuest()
    with terminal() as (fd, keys):
        async with typed_on(guest, Keyboard(fd, on_command=print)):
            os.write(keys, b"y\r\x1di")
            await trio.sleep(0.1)
            assert guest.got == b"y\r"
            os.write(keys, b"n")
            await trio.sleep(0.1)
            assert guest.got == b"y\rn"


async def test_a_terminal_that_is_not_ours_has_no_escape_and_is_no_script(
    autojump_clock: MockClock,
) -> None:
    """That of a program which waits for prompts itself: nothing is paced once one stood there."""
    guest = FakeGuest()
    master, slave = os.openpty()
    tty.setraw(slave)

    def press(keys: bytes) -> None:
        os.write(master, keys)
        assert select.select([slave], [], [], 20)[0]  # it comes there a little later

    async with typed_on(guest, Keyboard(slave)):
        press(b"a\x1ds")
        await trio.sleep(100)
        assert guest.got == b""
        guest.show("# ")
        await trio.sleep(1)
        press(b"b\rc\rd")
        await trio.sleep(0.001)
        assert guest.got == b"a\x1dsb\rc\rd"
    os.close(master)
    os.close(slave)
