"""What is shown of a guest's console by `attach`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from p2pcloop.client.guests import GuestProcess
from p2pcloop.errors import GuestError
from p2pcloop.store.guests import GuestFolder
from p2pcloop.store.home import Home
from p2pcloopd.control_client import ControlClient
from p2pcloopd.control_server import open_listener
from p2pcloopd.guest.console.attaching import _attach, _Attached
from p2pcloopd.guest.console.console import Sink
from p2pcloopd.guest.console.screen import Recent


class Guest:
    """A guest's control socket, as far as output is concerned."""

    def __init__(self) -> None:
        self.recent = Recent()

    async def call(self, op: str, after: int = 0) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if op == "console_position":
            return {"position": self.recent.position, "prompted": False}
        assert op == "console_output"
        position, data = await self.recent.read(self.recent.start() if after < 0 else after)
        return {"position": position, "data": data}


@pytest.mark.parametrize(
    ("before", "at_a_terminal", "shown"),
    [
        (b"", False, b"first\n"),
        (b"", True, b"first\n"),
        (b"old\nvm login: ", False, b"first\n"),
        (b"old\nvm login: ", True, b"old\nvm login: first\n"),
    ],
)
async def test_a_pipe_gets_what_comes_and_a_terminal_what_was_there(
    tmp_path: Path, before: bytes, at_a_terminal: bool, shown: bytes
) -> None:
    guest, output = Guest(), tmp_path / "output"
    guest.recent.take(before)
    async with trio.open_nursery() as nursery:
        attached = _Attached(
            *(cast(ControlClient, guest), cast(GuestProcess, None), Sink(output)),
            *(nursery.cancel_scope,),
            is_terminal=False,
        )
        show = attached.show_output
        nursery.start_soon(lambda: show(earlier=at_a_terminal))
        await trio.testing.wait_all_tasks_blocked()
        for data in (b"fir", b"st\n"):
            guest.recent.take(data)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert output.read_bytes() == shown


async def test_a_guest_that_ends_while_it_starts_is_told(tmp_path: Path) -> None:
    folder = GuestFolder(Home(tmp_path), "g1")
    folder.path.mkdir(parents=True)
    with open_listener(folder.socket_path) as listener:
        async with trio.open_nursery() as nursery:

            async def attach() -> None:
                with pytest.raises(GuestError, match="does not answer"):
                    await _attach(folder, cast(GuestProcess, None))

            nursery.start_soon(attach)
            await (await listener.accept()).aclose()


async def test_a_guest_that_does_not_answer_yet_can_be_left(tmp_path: Path) -> None:
    """It listens from the beginning, and answers once its kernel runs."""
    home = Home(tmp_path)
    folder = GuestFolder(home, "g1")
    folder.path.mkdir(parents=True)
    with open_listener(folder.socket_path):
        async with trio.open_nursery() as nursery:

            async def attach() -> None:
                assert await _attach(folder, cast(GuestProcess, None)) == (False, signal.SIGINT)

            nursery.start_soon(attach)
            await trio.testing.wait_all_tasks_blocked()
            for number in (signal.SIGCONT, signal.SIGINT):
                os.kill(os.getpid(), number)
