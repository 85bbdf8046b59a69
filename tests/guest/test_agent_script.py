"""The agent's script, with files in place of ports."""

from __future__ import annotations

import os
import signal
import subprocess
from importlib import resources
from pathlib import Path

from p2pcloopd.guest.system.kernel import find_busybox
from tests.support.waiting import wait_until

MARK = "end of the output"


def script(name: str) -> Path:
    return Path(str(resources.files("p2pcloopd.guest.resources") / name))


def served(folder: Path, command: str) -> subprocess.Popen[bytes]:
    """Have the script run a command with the streams `input`, `output` and `errors` in a folder."""
    ports = [folder / name for name in ("input", "output", "errors")]
    sandbox: list[str | Path] = [
        "bwrap",
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--bind",
        folder,
        folder,
    ]
    agent: list[str | Path] = [
        find_busybox(),
        "sh",
        "/proc/self/fd/9",
        "serve",
        *ports,
        "1",
        "1",
        command,
    ]
    words: list[str | Path] = [script("become.sh"), script("agent.sh"), *sandbox, *agent]
    opened = 'exec 7<"$1" 9<"$2"; shift 2; exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", opened, "sh", *words], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(f"{MARK}\n".encode())
    return process


def test_a_port_that_cannot_be_opened_yet_is_tried_again(tmp_path: Path) -> None:
    """Linux's driver makes its device first, and then knows it: the command's end was lost."""
    os.mkfifo(tmp_path / "input")
    errors, target = tmp_path / "errors", tmp_path / "target"
    errors.symlink_to("/dev/tty")  # nobody in a session of its own can open it
    process = served(tmp_path, "printf word; printf error >&2")
    try:
        output = tmp_path / "output"
        wait_until(
            lambda: output.exists() and output.read_text() == f"word{MARK}000",
            "that the command has ended",
        )
        target.touch()
        (tmp_path / "next").symlink_to(target)
        (tmp_path / "next").replace(errors)
        wait_until(lambda: target.read_text() == f"error{MARK}000", "that its errors come")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
