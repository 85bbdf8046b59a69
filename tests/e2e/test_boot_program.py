"""`p2pcloop boot` as a program: how it ends, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import DaemonError, GuestError
from tests.support.programs import Guest, Node, Nodes, started, tool, wait_readable
from tests.support.waiting import BOUND
from tools.tiny_image import SHELL_PROMPT

pytestmark = pytest.mark.e2e


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for the temporary files of one program."""
    with tempfile.TemporaryDirectory(prefix="p2pt-") as directory:
        yield Path(directory)


@pytest.fixture
def node(nodes: Nodes, temporary: Path) -> Node:
    node = nodes.make()
    node.environment["TMPDIR"] = str(temporary)
    return node


@contextmanager
def nothing_left(guest: Guest, node: Node, temporary: Path) -> Iterator[None]:
    """After the block: no process of the guest, no temporary file, and no overlay of its own."""
    processes = guest.processes()
    assert len(processes) > 3, processes
    assert any(temporary.iterdir())
    yield
    assert [process for process in processes if process.runs()] == []
    assert list(temporary.iterdir()) == []
    assert list(node.home.tmp.iterdir()) == []


def test_poweroff(node: Node, cloop: Path, temporary: Path) -> None:
    with Guest(node, cloop, installed=True) as guest:
        guest.prompt()
        with nothing_left(guest, node, temporary):
            guest.power_off()
        assert guest.said == ""


def test_a_guest_that_cannot_boot_is_reported(node: Node, cloop: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    with Guest(
        node, cloop, "--report", report, "--append", "init=/no/such", installed=True
    ) as guest:
        assert guest.wait(BOUND) == GuestError.exit_code
        assert "/no/such" in guest.said
    told = json.loads(report.read_text())
    assert (told["exit"], told["exit_code"]) == ("failed", GuestError.exit_code)
    assert "/no/such" in told["error"]
    assert told["boot_seconds"] is None
    assert told["block_server"]["bytes_touched"] > 0
    assert told["image_size"] == 32 << 20


def test_an_interrupt_shuts_the_guest_down(
    node: Node, cloop: Path, temporary: Path, tmp_path: Path
) -> None:
    overlay, report, merged = tmp_path / "o", tmp_path / "report", tmp_path / "merged.img"
    with Guest(node, cloop, "--overlay", overlay, "--report", report, installed=True) as guest:
        guest.prompt()
        guest.sh("echo not synced > /root/mine")
        with nothing_left(guest, node, temporary):
            guest.process.send_signal(signal.SIGINT)
            assert guest.wait(BOUND) == 0
        assert "the guest shuts down" in guest.said
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["image_size"]) == (0, 32 << 20)
    node.run("export", cloop, merged, "--overlay", overlay)
    tool("e2fsck", "-fn", merged)
    assert tool("debugfs", "-R", "cat /root/mine", merged) == "not synced\n"


def test_a_second_interrupt_ends_it_at_once(node: Node, cloop: Path, temporary: Path) -> None:
    deaf = "quiet init=/bin/sh PS1='tiny# '"
    with Guest(node, cloop, "--append", deaf, installed=True) as guest:
        guest.prompt()
        guest.sh("echo 0 > /proc/sys/kernel/ctrl-alt-del")
        guest.prompt()
        with nothing_left(guest, node, temporary):
            guest.process.send_signal(signal.SIGINT)
            guest.prompt()  # all that Ctrl-Alt-Del does to a shell
            guest.process.send_signal(signal.SIGINT)
            assert guest.wait(BOUND) == 128 + signal.SIGKILL
        assert [line for line in guest.said.splitlines() if line] == [
            "p2pcloop: the guest shuts down (again: end it; it is ended after 60 s)",
            "p2pcloop: the guest is ended",
        ]


def test_a_hangup_shuts_the_guest_down(node: Node, cloop: Path, temporary: Path) -> None:
    with Guest(node, cloop, installed=True) as guest:
        guest.prompt()
        with nothing_left(guest, node, temporary):
            guest.process.send_signal(signal.SIGHUP)
            guest.process.send_signal(signal.SIGHUP)  # as a shell does, besides the system
            assert guest.wait(BOUND) == 0


def test_a_guest_that_hangs_on_a_read_is_ended_after_a_while(
    nodes: Nodes, node: Node, cloop: Path, temporary: Path, tmp_path: Path
) -> None:
    """The only source of the image is gone. What was flushed is kept."""
    program = (
        "from p2pcloop.cli.main import main\n"
        "from p2pcloopd.guest import lifecycle\n"
        "lifecycle.SHUTDOWN_SECONDS = 0.5\n"
        "main()"
    )
    overlay, merged = tmp_path / "o", tmp_path / "merged.img"
    seeder, hasty = nodes.make(), Hasty(node.root, program)
    node.run("daemon", "start")  # or it would be a child of boot
    hasty.environment = node.environment
    link = seeder.seed(cloop)["link"]
    deaf = "quiet init=/bin/sh PS1='tiny# '"
    with Guest(hasty, link, "--overlay", overlay, "--append", deaf, installed=True) as guest:
        guest.prompt()
        guest.sh("echo 0 > /proc/sys/kernel/ctrl-alt-del; echo flushed > /root/mine; sync")
        seeder.run("daemon", "stop")
        guest.send_line("cat /root/data > /dev/null")
        with nothing_left(guest, node, temporary):
            guest.process.send_signal(signal.SIGINT)
            assert guest.wait(BOUND) == 128 + signal.SIGKILL
        assert "the guest did not shut down within 0.5 s and is ended" in guest.said
    node.run("export", cloop, merged, "--overlay", overlay)
    assert tool("e2fsck", "-fy", merged, code=1)  # its journal is played
    assert tool("debugfs", "-R", "cat /root/mine", merged) == "flushed\n"


class Hasty(Node):
    """A node whose commands run in a Python program."""

    def __init__(self, root: Path, program: str) -> None:
        super().__init__(root)
        self._program = program

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-c", self._program, *map(str, words)]


def test_a_killed_boot_takes_its_processes_along(node: Node, cloop: Path) -> None:
    with Guest(node, cloop, installed=True) as guest:
        guest.prompt()
        boot, *others = guest.processes()
        boot.kill()
        for process in others:
            process.wait()


def test_a_panic_and_a_dead_block_server_are_errors(node: Node, cloop: Path) -> None:
    with Guest(node, cloop, installed=True) as guest:
        guest.prompt()
        guest.send_line("echo c > /proc/sysrq-trigger")
        assert guest.wait(BOUND) not in (0, GuestError.exit_code)
    with Guest(node, cloop, installed=True) as guest:
        guest.prompt()
        _, *others = guest.processes()
        server = next(process for process in others if is_python(process.pid))
        server.kill()
        assert guest.wait(BOUND) == DaemonError.exit_code
        assert "block server died" in guest.said
        for process in others:
            process.wait()


def is_python(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").resolve() == Path(sys.executable).resolve()


def test_a_reboot_boots_again(node: Node, cloop: Path, temporary: Path, tmp_path: Path) -> None:
    """With the same disk, whose server goes on; without an overlay file, too."""
    report = tmp_path / "report"
    with Guest(node, cloop, "--report", report, installed=True) as guest:
        guest.prompt()
        with nothing_left(guest, node, temporary):
            guest.sh("echo kept > /root/mine")
            guest.send_line("reboot")
            guest.expect("reboot: Restarting system", BOUND)
            guest.prompt()
            assert guest.sh("cat /root/mine") == "kept\n"
            guest.power_off()
    told = json.loads(report.read_text())
    assert (told["exit"], told["exit_code"], told["reboots"]) == ("poweroff", 0, 1)
    assert told["boot_seconds"] < told["seconds"]
    assert told["block_server"]["bytes_touched"] > 0


def test_piped_input_is_held_and_its_end_ends_the_guest(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    """What is there before the guest runs is lost nowhere; `--no-reboot` ends at a reboot."""
    overlay, report = tmp_path / "o", tmp_path / "report"
    words = ("boot", cloop, "--append", "quiet", "--overlay", overlay, "--report", report)
    piped: dict[str, Any] = {"stdin": subprocess.PIPE}
    with node.started(*words, **piped) as boot:
        out, err = boot.communicate("cat > /root/mine\nfirst\nlast", timeout=BOUND)
        assert (boot.returncode, json.loads(report.read_text())["exit"]) == (0, "reboot"), out
        assert "the guest has read all of its input" in err
    with node.started(*words, "--no-reboot", **piped) as boot:
        out, err = boot.communicate("cat /root/mine\nreboot\n", timeout=BOUND)
        assert (boot.returncode, json.loads(report.read_text())["reboots"]) == (0, 0), (out, err)
        assert "\nfirst\nlast\n" in out.replace("\r", "")


@pytest.mark.parametrize("end", ["escape", "SIGTERM"])
def test_the_terminal_is_as_it_was(node: Node, cloop: Path, end: str) -> None:
    """On a controlling terminal: Ctrl-C and all other keys are the guest's, but for the escape."""
    master, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    login = "import os, sys; os.login_tty(os.dup(0)); os.execv(sys.argv[1], sys.argv[1:])"
    command = node.command("boot", cloop, "--append", "quiet")
    shown = b""

    def wait_for(text: str) -> None:
        nonlocal shown
        while text.encode() not in shown:
            assert wait_readable(master), shown
            shown += os.read(master, 4096)
        shown = shown.partition(text.encode())[2]

    with started(
        [sys.executable, "-c", login, *command],
        env=node.environment, stdin=terminal, stdout=terminal, stderr=terminal,
    ) as boot:  # fmt: skip
        wait_for("Ctrl-] is the escape")
        wait_for("no overlay: changes last for this boot")
        # Typed long before the guest's shell is there.
        os.write(master, b"sh -c \"echo go''ing; exec sleep 1000\"\r")
        wait_for("going\r")
        assert not termios.tcgetattr(terminal)[3] & (termios.ECHO | termios.ISIG)
        os.write(master, b"\x03")
        wait_for(SHELL_PROMPT)
        if end == "escape":
            os.write(master, b"\x1d?")
            wait_for("send Ctrl-] to the guest")
            os.write(master, b"\x1ds")
        else:
            boot.terminate()
        wait_for("the guest shuts down")
        wait_for("reboot: Restarting system")
        assert boot.wait(BOUND) == 0
    assert termios.tcgetattr(terminal) == before
    for fd in (master, terminal):
        os.close(fd)


def test_a_terminal_that_is_closed_shuts_the_guest_down(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    overlay, merged = tmp_path / "o", tmp_path / "merged.img"
    master, terminal = os.openpty()
    login = "import os, sys; os.login_tty(os.dup(0)); os.execv(sys.argv[1], sys.argv[1:])"
    command = node.command("boot", cloop, "--append", "quiet", "--overlay", overlay)
    shown = b""
    with started(
        [sys.executable, "-c", login, *command],
        env=node.environment, stdin=terminal, stdout=terminal, stderr=terminal,
    ) as boot:  # fmt: skip
        os.close(terminal)
        while SHELL_PROMPT.encode() not in shown:
            assert wait_readable(master), shown
            shown += os.read(master, 4096)
        os.write(master, b"echo not synced > /root/mine; echo writ''ten\n")
        while b"written" not in shown:
            assert wait_readable(master), shown
            shown += os.read(master, 4096)
        os.close(master)
        assert boot.wait(BOUND) == 0
    node.run("export", cloop, merged, "--overlay", overlay)
    assert tool("debugfs", "-R", "cat /root/mine", merged) == "not synced\n"


def test_console_in_a_file_and_no_input(node: Node, cloop: Path, tmp_path: Path) -> None:
    console = tmp_path / "console"
    append = "init=/sbin/poweroff -- -f"
    done = node.run("boot", cloop, "--console", console, "--append", append)
    assert (done.out, done.err) == ("", "")
    # The system's kernel knows no way to cut the power; newer ones do.
    assert re.search("reboot: (System halted|Power down)", console.read_text())
