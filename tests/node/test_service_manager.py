"""p2pcloopd as a service: the control socket is passed to it, and it tells that it is ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pcloop.errors import UsageError
from p2pcloopd.node.service_manager import notify_service_manager, take_passed_socket
from tests.support.programs import P2PCLOOP, Node, Nodes
from tests.support.waiting import BOUND, wait_until

P2PCLOOPD = P2PCLOOP.with_name("p2pcloopd")


@pytest.fixture
def path(nodes: Nodes) -> Path:
    """Where a control socket is, short enough for its address."""
    home = nodes.make().home
    home.create()
    return home.control_socket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What a service manager hears with; its name is NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{tmp_path}")
        listening.settimeout(BOUND)
        yield listening


def words(**more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"} | more


def name_of(listening: socket.socket) -> str:
    name: bytes = listening.getsockname()
    return "@" + name[1:].decode()


@pytest.mark.parametrize(
    "environment",
    [{}, words(LISTEN_PID="1"), words(LISTEN_PID=""), words(LISTEN_FDS="0")],
    ids=["nothing", "another process's", "no process", "no socket"],
)
def test_without_a_socket_for_us_nothing_is_taken(environment: dict[str, str], path: Path) -> None:
    assert take_passed_socket(path, environment) is None
    assert environment == {}


def test_the_home_socket_is_taken_and_its_variables_with_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        made.set_inheritable(True)
        environment = words(LANG="C")
        passed = take_passed_socket(path, environment, os.dup(made.fileno()))
        assert passed is not None
        with passed:
            assert passed.getsockname() == str(path)
            assert not passed.get_inheritable()
    assert environment == {"LANG": "C"}


def test_a_socket_elsewhere_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path.with_name("other.sock")))
        made.listen()
        with pytest.raises(UsageError, match=r"passes is .*other\.sock") as caught:
            take_passed_socket(path, words(), os.dup(made.fileno()))
    assert caught.value.hint == f"its unit needs one ListenStream={path}"


def test_what_accepts_no_clients_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))  # and does not listen
        with pytest.raises(UsageError, match="accepts no clients"):
            take_passed_socket(path, words(), os.dup(made.fileno()))
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        with pytest.raises(UsageError, match="accepts no clients"):
            take_passed_socket(path, words(), os.dup(made.fileno()))
    with open(os.devnull) as file:
        with pytest.raises(UsageError, match="no socket"):
            take_passed_socket(path, words(), file.fileno())
    with pytest.raises(UsageError, match="2 sockets, not one"):
        take_passed_socket(path, words(LISTEN_FDS="2"))


def test_a_service_manager_hears_of_the_start_and_of_the_end(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": name_of(manager)}
    for state in ("READY=1", "STOPPING=1"):
        notify_service_manager(state, environment)
        assert manager.recv(100).decode() == state
    assert environment == {}


def test_a_service_manager_that_has_gone_is_no_error(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notify_service_manager("READY=1", {})
    notify_service_manager("READY=1", {"NOTIFY_SOCKET": "vsock:2:1234"})
    assert not caplog.records
    notify_service_manager("READY=1", {"NOTIFY_SOCKET": str(path)})
    assert "does not hear of READY=1" in caplog.text


@pytest.mark.interop
def test_the_first_client_starts_p2pcloopd(nodes: Nodes, manager: socket.socket) -> None:
    """`systemd-socket-activate` makes the socket, and becomes p2pcloopd when a client connects."""
    node = nodes.make()
    node.home.create()
    with activated(node, {"NOTIFY_SOCKET": name_of(manager)}) as process:
        status = node.json("daemon", "status")
        assert status["pid"] == process.pid
        assert manager.recv(100) == b"READY=1"
        assert node.run("daemon", "start").err == ""  # it runs: no other one is started
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"LISTEN_FDS=1" in environment
        node.run("daemon", "stop")
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(BOUND) == 0
    assert node.home.control_socket.is_socket()  # the service manager listens there yet


@pytest.mark.interop
def test_a_node_that_runs_already_keeps_its_home(nodes: Nodes) -> None:
    node = nodes.make()
    node.start()
    node.home.control_socket.unlink()  # as the service manager does, which then makes its own
    with activated(node, {}) as process:
        assert "lost p2pcloopd" in node.run("daemon", "status", code=9).err
        assert process.wait(BOUND) == 6
    assert node.end(signal.SIGTERM) == 0


@contextmanager
def activated(node: Node, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that makes the home's control socket, and becomes p2pcloopd."""
    said = node.root / "activation.log"
    command: list[str | Path] = ["systemd-socket-activate", "-E", "NOTIFY_SOCKET"]
    command += ["-l", node.home.control_socket, P2PCLOOPD, "--home", node.root]
    with open(said, "wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stderr=log)
    try:
        wait_until(lambda: "Listening on" in said.read_text())
        yield process
    finally:
        process.kill()
        process.wait(BOUND)
