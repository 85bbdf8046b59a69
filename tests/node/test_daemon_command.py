"""Starting and stopping p2pcloopd by command, and what goes wrong with it."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.daemon import ensure_daemon, stop_daemon
from p2pcloop.errors import BusyError, DaemonError, UsageError
from p2pcloop.protocol.control import ControlReceiver, Failure
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease
from tests.support.programs import Node, Nodes, read_until
from tests.support.waiting import BOUND

from .conftest import publish_version


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


def test_from_start_to_stop(node: Node) -> None:
    assert node.json("daemon", "status", code=9)["running"] is False
    out, err = node.run("daemon", "start")
    assert err.count("\n") == 1
    assert "starting p2pcloopd" in err
    pid = node.home.holder()
    assert f"process {pid}" in out
    assert node.run("daemon", "start").err == ""
    status = node.json("daemon", "status")
    assert (status["running"], status["pid"]) == (True, pid)
    assert node.json("status")["torrents"] == []
    assert "p2pcloopd runs" in node.run("status").out
    assert node.json("daemon", "stop")["stopped"] is True
    assert node.home.holder() is None
    assert node.json("daemon", "stop")["stopped"] is False
    assert "INFO" in node.home.log.read_text()


def test_a_daemon_that_was_started_has_a_session_of_its_own(node: Node) -> None:
    with ensure_daemon(node.home) as client:
        assert os.getsid(client.pid) == client.pid
        targets = [Path(f"/proc/{client.pid}/fd/{fd}").readlink() for fd in range(3)]
    assert targets == [Path("/dev/null"), node.home.log, node.home.log]
    assert stop_daemon(node.home)
    os.waitpid(client.pid, 0)


def test_what_is_to_be_done_meanwhile_is_done_while_one_starts_only(node: Node) -> None:
    calls: list[str] = []
    ensure_daemon(node.home, lambda: calls.append("starting")).close()
    with ensure_daemon(node.home, lambda: calls.append("runs")) as client:
        assert calls == ["starting"]
    assert stop_daemon(node.home)
    os.waitpid(client.pid, 0)


def test_a_passphrase_is_not_left_with_the_daemon(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "correct horse")
    with ensure_daemon(node.home) as client:
        assert b"correct horse" not in Path(f"/proc/{client.pid}/environ").read_bytes()
    assert stop_daemon(node.home)
    os.waitpid(client.pid, 0)


def test_starts_at_once_end_with_one_daemon(node: Node) -> None:
    with ThreadPoolExecutor(4) as pool:
        starts = [pool.submit(node.json, "daemon", "start") for _ in range(4)]
    assert {start.result()["pid"] for start in starts} == {node.home.holder()}


def test_a_start_after_sigkill_works(node: Node) -> None:
    node.start()
    node.end(signal.SIGKILL)
    assert node.home.control_socket.exists()
    with pytest.raises(NotRunningError):
        ControlClient.connect(node.home)
    node.run("daemon", "start")


def test_a_command_whose_daemon_dies_says_so(node: Node) -> None:
    node.start()
    with ControlClient.connect(node.home) as client:
        node.end(signal.SIGKILL)
        with pytest.raises(DaemonError, match=r"during `status`: (it went away|.*Broken pipe)"):
            client.call("status")


def test_watch_goes_on_until_it_is_ended(node: Node) -> None:
    node.run("daemon", "start")
    with node.started("status", "--watch", "--json") as watching:
        assert watching.stdout is not None
        seen = [json.loads(watching.stdout.readline()) for _ in range(2)]
        assert seen[1]["uptime"] > seen[0]["uptime"]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=BOUND)
        assert watching.returncode == 130


def test_status_tells_of_torrents(node: Node, content: bytes) -> None:
    node.start()
    published = publish_version(node, content)
    lines = node.run("status").out.splitlines()
    assert "100 % of 304.1 kB here, 0 peers" in lines[lines.index(published["name"]) + 1]
    assert "torrents that" not in lines[-1]


def test_status_tells_what_no_name_points_to(node: Node, content: bytes) -> None:
    node.start()
    old = publish_version(node, content)
    new = publish_version(node, content[:-1], version=2)
    named, _, others = node.run("status").out.partition("torrents that are not")
    assert new["name"] in named
    assert "100 % of 304.1 kB here" in named
    assert f"{old['torrent'].hex()} (" in others
    assert new["torrent"].hex() not in others
    assert f"({old['name']}, version 1)" in others


def test_what_the_killed_left_in_tmp_is_deleted(node: Node) -> None:
    for name in ("manifest-x", "old-x", "seed-x"):
        (node.home.tmp / name / "data").mkdir(parents=True)
    with node.home.staging() as held:
        (held / "data").mkdir()
        node.start()
        assert list(node.home.tmp.iterdir()) == [held]
        assert (held / "data").is_dir()
    assert list(node.home.tmp.iterdir()) == []


def test_it_does_not_stay_where_it_was_started(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    node.run("daemon", "start")
    assert Path(f"/proc/{node.home.holder()}/cwd").readlink() == Path("/")


def test_what_keeps_it_from_starting_is_told(node: Node) -> None:
    node.configure("uplaod_limit = 1")
    with pytest.raises(UsageError, match="uplaod_limit"):
        ensure_daemon(node.home)
    assert "uplaod_limit" in node.run("daemon", "start", code=2).err
    assert "uplaod_limit" in node.home.log.read_text()


def test_a_second_daemon_on_one_home_is_refused(node: Node) -> None:
    node.start()
    assert node.process is not None
    second, said = node.launch()
    assert second.wait(BOUND) == BusyError.exit_code
    [failure] = ControlReceiver().receive(said)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, BusyError)
    assert str(node.process.pid) in str(failure.error)
    assert node.call("status")["pid"] == node.process.pid


def test_a_port_that_is_taken_is_told(node: Node, nodes: Nodes) -> None:
    other = nodes.start()
    [address] = other.call("status")["listen"]
    node.configure(f'listen = ["{address}"]')
    with pytest.raises(BusyError, match=address.rpartition(":")[2]) as caught:
        ensure_daemon(node.home)
    assert f"config set listen ADDRESS:PORT --home {node.home.root}`" in str(caught.value.hint)


def test_a_node_that_guests_read_from_is_stopped_by_force_only(node: Node) -> None:
    node.run("daemon", "start")
    with Lease(node.home, bytes(32), "the guest of @key/debian, process 4711"):
        err = node.run("daemon", "stop", code=6).err
        assert "the guest of @key/debian, process 4711" in err
        assert "--force" in err
        assert node.json("daemon", "status")["running"] is True
        assert node.json("daemon", "stop", "--force")["stopped"] is True
        node.run("daemon", "stop")  # where none runs, none is asked
    node.run("daemon", "start")
    node.run("daemon", "stop")


def test_a_kept_port_that_another_program_has_is_told_to_the_user(node: Node) -> None:
    """Links name it, and lead nowhere from then on: a line of the log does not do."""
    node.run("daemon", "start")
    [address] = node.json("daemon", "status")["listen"]
    node.run("daemon", "stop")
    host, _, port = address.rpartition(":")
    with socket.socket() as squatter:
        squatter.bind((host, int(port)))
        squatter.listen()
        err = node.run("daemon", "start").err
        assert f"another program has port {port}" in err
        assert f"another program has port {port}" in node.run("status").out
        assert node.json("status")["listen"] != [address]


def test_run_is_p2pcloopd_in_the_foreground(node: Node) -> None:
    with node.started("daemon", "run", "--log-level", "debug") as running:
        read_until(running, "serving")
        assert node.home.holder() == running.pid
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=BOUND)
        assert running.returncode == 0


def test_a_home_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        ensure_daemon(Home.at(tmp_path / "file"))
