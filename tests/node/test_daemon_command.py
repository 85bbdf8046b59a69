"""Starting and stopping p2pcloopd by command, and what goes wrong with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.daemon import ensure_daemon, stop_daemon
from p2pcloop.errors import BusyError, DaemonError, UsageError
from p2pcloop.protocol.control import ControlReceiver, Failure
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease

from .conftest import NodeProcess, Nodes

PROGRAM = [sys.executable, "-c", "from p2pcloop.cli.main import main; main()"]


@pytest.fixture
def node(nodes: Nodes) -> Iterator[NodeProcess]:
    node = nodes.make()
    try:
        yield node
    finally:
        pid = node.home.holder()
        if pid is not None and (node.process is None or node.process.pid != pid):
            os.kill(pid, signal.SIGKILL)


def launch(node: NodeProcess, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"P2PCLOOP_HOME": str(node.home.root)},
    )


def command(node: NodeProcess, *arguments: str, code: int = 0) -> tuple[str, str]:
    process = launch(node, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


def answer(node: NodeProcess, *arguments: str, code: int = 0) -> Any:
    return json.loads(command(node, *arguments, "--json", code=code)[0])


def test_from_start_to_stop(node: NodeProcess) -> None:
    assert answer(node, "daemon", "status", code=9)["running"] is False
    out, err = command(node, "daemon", "start")
    assert err.count("\n") == 1
    assert "starting p2pcloopd" in err
    pid = node.home.holder()
    assert f"process {pid}" in out
    assert command(node, "daemon", "start")[1] == ""
    status = answer(node, "daemon", "status")
    assert (status["running"], status["pid"]) == (True, pid)
    assert answer(node, "status")["torrents"] == []
    assert "p2pcloopd runs" in command(node, "status")[0]
    assert answer(node, "daemon", "stop")["stopped"] is True
    assert node.home.holder() is None
    assert answer(node, "daemon", "stop")["stopped"] is False
    assert "INFO" in node.home.log.read_text()


def test_a_daemon_that_was_started_has_a_session_of_its_own(node: NodeProcess) -> None:
    with ensure_daemon(node.home) as client:
        assert os.getsid(client.pid) == client.pid
        targets = [Path(f"/proc/{client.pid}/fd/{fd}").readlink() for fd in range(3)]
    assert targets == [Path("/dev/null"), node.home.log, node.home.log]
    assert stop_daemon(node.home)
    os.waitpid(client.pid, 0)


def test_what_is_to_be_done_meanwhile_is_done_while_one_starts_only(node: NodeProcess) -> None:
    calls: list[str] = []
    ensure_daemon(node.home, lambda: calls.append("starting")).close()
    with ensure_daemon(node.home, lambda: calls.append("runs")) as client:
        assert calls == ["starting"]
    assert stop_daemon(node.home)
    os.waitpid(client.pid, 0)


def test_a_passphrase_is_not_left_with_the_daemon(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "correct horse")
    with ensure_daemon(node.home) as client:
        assert b"correct horse" not in Path(f"/proc/{client.pid}/environ").read_bytes()
    assert stop_daemon(node.home)
    os.waitpid(client.pid, 0)


def test_starts_at_once_end_with_one_daemon(node: NodeProcess) -> None:
    starts = [launch(node, "daemon", "start", "--json") for _ in range(4)]
    answers = [(start.communicate(timeout=60), start.returncode) for start in starts]
    assert [code for _, code in answers] == [0] * 4, answers
    assert {json.loads(out)["pid"] for (out, _), _ in answers} == {node.home.holder()}


def test_a_start_after_sigkill_works(node: NodeProcess) -> None:
    node.start()
    node.end(signal.SIGKILL)
    assert node.home.control_socket.exists()
    with pytest.raises(NotRunningError):
        ControlClient.connect(node.home)
    command(node, "daemon", "start")


def test_a_command_whose_daemon_dies_says_so(node: NodeProcess) -> None:
    node.start()
    with ControlClient.connect(node.home) as client:
        node.end(signal.SIGKILL)
        with pytest.raises(DaemonError, match=r"during `status`: (it went away|.*Broken pipe)"):
            client.call("status")


def test_watch_goes_on_until_it_is_ended(node: NodeProcess) -> None:
    command(node, "daemon", "start")
    watching = launch(node, "status", "--watch", "--json")
    try:
        assert watching.stdout is not None
        seen = [json.loads(watching.stdout.readline()) for _ in range(2)]
        assert seen[1]["uptime"] > seen[0]["uptime"]
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
    assert watching.returncode == 130


def test_status_tells_of_torrents(node: NodeProcess, content: bytes) -> None:
    node.start()
    published = node.publish(content)
    lines = command(node, "status")[0].splitlines()
    assert "100 % of 304.1 kB here, 0 peers" in lines[lines.index(published["name"]) + 1]
    assert "torrents that" not in lines[-1]


def test_status_tells_what_no_name_points_to(node: NodeProcess, content: bytes) -> None:
    node.start()
    old = node.publish(content)
    new = node.publish(content[:-1], version=2)
    named, _, others = command(node, "status")[0].partition("torrents that are not")
    assert new["name"] in named
    assert "100 % of 304.1 kB here" in named
    assert f"{old['torrent'].hex()} (" in others
    assert new["torrent"].hex() not in others
    assert others.count("(manifest)") == 1


def test_what_the_killed_left_in_tmp_is_deleted(node: NodeProcess) -> None:
    for name in ("manifest-x", "old-x", "seed-x"):
        (node.home.tmp / name / "data").mkdir(parents=True)
    with node.home.staging() as held:
        (held / "data").mkdir()
        node.start()
        assert list(node.home.tmp.iterdir()) == [held]
        assert (held / "data").is_dir()
    assert list(node.home.tmp.iterdir()) == []


def test_what_keeps_it_from_starting_is_told(node: NodeProcess) -> None:
    node.configure("uplaod_limit = 1")
    with pytest.raises(UsageError, match="uplaod_limit"):
        ensure_daemon(node.home)
    assert "uplaod_limit" in command(node, "daemon", "start", code=2)[1]
    assert "uplaod_limit" in node.home.log.read_text()


def test_a_second_daemon_on_one_home_is_refused(node: NodeProcess) -> None:
    node.start()
    assert node.process is not None
    second, said = node.launch()
    assert second.wait(30) == BusyError.exit_code
    [failure] = ControlReceiver().receive(said)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, BusyError)
    assert str(node.process.pid) in str(failure.error)
    assert node.call("status")["pid"] == node.process.pid


def test_a_port_that_is_taken_is_told(node: NodeProcess, nodes: Nodes) -> None:
    other = nodes.start()
    [address] = other.call("status")["listen"]
    node.configure(f'listen = ["{address}"]')
    with pytest.raises(BusyError, match=address.rpartition(":")[2]):
        ensure_daemon(node.home)


def test_a_node_that_guests_read_from_is_stopped_by_force_only(node: NodeProcess) -> None:
    command(node, "daemon", "start")
    with Lease(node.home, bytes(32), "the guest of @key/debian, process 4711"):
        err = command(node, "daemon", "stop", code=6)[1]
        assert "the guest of @key/debian, process 4711" in err
        assert "--force" in err
        assert answer(node, "daemon", "status")["running"] is True
        assert answer(node, "daemon", "stop", "--force")["stopped"] is True
        command(node, "daemon", "stop")  # where none runs, nobody is asked
    command(node, "daemon", "start")
    command(node, "daemon", "stop")


def test_a_kept_port_that_another_program_has_is_told_to_the_user(node: NodeProcess) -> None:
    """Links name it, and lead nowhere from then on: a line of the log does not do."""
    command(node, "daemon", "start")
    [address] = answer(node, "daemon", "status")["listen"]
    command(node, "daemon", "stop")
    host, _, port = address.rpartition(":")
    with socket.socket() as squatter:
        squatter.bind((host, int(port)))
        squatter.listen()
        err = command(node, "daemon", "start")[1]
        assert f"another program has port {port}" in err
        assert f"another program has port {port}" in command(node, "status")[0]
        assert answer(node, "status")["listen"] != [address]


def test_run_is_p2pcloopd_in_the_foreground(node: NodeProcess) -> None:
    running = launch(node, "daemon", "run", "--log-level", "debug")
    try:
        assert running.stderr is not None
        while "serving" not in running.stderr.readline():
            assert running.poll() is None
        assert node.home.holder() == running.pid
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    assert running.returncode == 0


def test_a_home_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        ensure_daemon(Home.at(tmp_path / "file"))
