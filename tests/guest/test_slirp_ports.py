"""Clients of a forwarded UDP port: which makes room for a new one, and when one is forgotten."""

from __future__ import annotations

from pathlib import Path

import p2pcloopd.guest.resources
from tests.support.programs import tool


def test_the_client_that_was_silent_for_longest_makes_room_and_an_idle_one_is_forgotten(
    tmp_path: Path,
) -> None:
    [resources] = p2pcloopd.guest.resources.__path__
    program = tmp_path / "program"
    source = Path(__file__).with_name("slirp_ports_clients.c")
    tool(
        *("cc", "-Wall", "-Werror", "-o", program, source),
        f'-DSOURCE="{resources}/slirp_ports.c"',
    )
    assert tool(program).splitlines() == [
        "same 1",  # a client keeps its port
        "full 1",
        "replaced 2",  # neither the first nor the second: both were heard since
        "kept 1 1",
        "soon 1",  # within 300 s
        "later 1 0",  # the first was answered meanwhile, the fourth was not
        "again 1",
    ]
