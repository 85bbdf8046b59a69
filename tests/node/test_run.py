"""The start of a node, in this process."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.errors import BusyError
from p2pcloop.store.home import Home
from p2pcloopd.log_output import LogOutput
from p2pcloopd.node import ports, run
from tests.support.waiting import BOUND


@pytest.fixture
def home() -> Iterator[Home]:
    # pytest's own directories are too deep for a socket's name.
    with tempfile.TemporaryDirectory(prefix="p2pr-") as directory:
        home = Home.at(Path(directory))
        home.create()
        yield home


@pytest.fixture(params=[0, 1], ids=["BitTorrent", "HTTP"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The port that the node chooses, each time; another program takes the first, before the node
    listens there."""
    found: list[int] = []
    with ExitStack() as taken:

        def choose(*words: Any) -> Any:
            addresses = ports.choose_ports(*words)
            [(host, port)] = addresses[request.param]
            if not found:
                taken.enter_context(socket.create_server((host, port)))
            found.append(port)
            return addresses

        monkeypatch.setattr(run, "choose_ports", choose)
        yield found


async def start(home: Home) -> None:
    """Start a node, and end it."""
    with trio.fail_after(BOUND), trio.CancelScope() as scope:
        await run.run_node(home, lambda _: scope.cancel(), LogOutput(None))


async def test_a_port_that_was_just_chosen_is_chosen_anew(home: Home, chosen: list[int]) -> None:
    """As where two nodes start at once."""
    await start(home)
    assert len({*chosen}) == 2


async def test_a_port_that_links_name_is_kept(home: Home, chosen: list[int]) -> None:
    ports.choose_ports(home.ports, [("127.0.0.1", 0)], None)
    before = home.ports.read_bytes()
    with pytest.raises(BusyError):
        await start(home)
    assert (len(chosen), home.ports.read_bytes()) == (1, before)
