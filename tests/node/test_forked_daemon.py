"""A p2pcloopd that is a fork of the command which needs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcloop.store.home import Home
from tests.support.programs import Node, Nodes
from tests.support.waiting import BOUND

_COMMAND = """
import socket, sys
from pathlib import Path
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.terminal import log_to_stderr
from p2pcloop.errors import P2pcloopError
from p2pcloop.store.home import Home
from p2pcloopd.forked import fork_daemon

log_to_stderr("WARNING", "of the command: %(message)s")
kept = socket.create_server(("127.0.0.1", 0))
try:
    ensure_daemon(Home.at(Path(sys.argv[1])), start=fork_daemon).close()
except P2pcloopError as err:
    print(type(err).__name__, err)
else:
    print(kept.getsockname()[1])
"""


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


def command(home: Home, *words: str) -> str:
    """What a command prints that starts a p2pcloopd: the port that it had open, or its error."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, home.root, *words],
        capture_output=True, text=True, check=True, timeout=BOUND,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_it_keeps_nothing_of_the_command(node: Node) -> None:
    port = int(command(node.home, "magnet:?x.secret=hidden"))
    pid = node.home.holder()
    assert pid is not None
    assert os.getsid(pid) == pid
    targets = [Path(f"/proc/{pid}/fd/{fd}").readlink() for fd in range(3)]
    assert targets == [Path("/dev/null"), node.home.log, node.home.log]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert shown.startswith(b"p2pcloopd --home ")
    assert b"hidden" not in shown
    assert "INFO p2pcloopd.node.run: serving" in node.home.log.read_text()
    assert "of the command" not in node.home.log.read_text()
    assert node.json("daemon", "stop")["stopped"] is True


def test_its_errors_are_those_of_the_command(node: Node) -> None:
    node.home.create()
    node.home.config.write_text("listen = 7\n")
    assert command(node.home).startswith("UsageError ")
    assert node.home.holder() is None


def test_a_passphrase_is_not_left_with_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "correct horse")
    command(node.home)
    pid = node.home.holder()
    assert b"correct horse" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert b"\0-m\0p2pcloopd\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert node.json("daemon", "stop")["stopped"] is True
