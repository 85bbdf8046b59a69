"""Standard streams that are closed, and what reaches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import Run

PROGRAM = "from p2pcloop.cli.main import main; main()"


def run_closed(closed: set[int], *arguments: str, home: Path) -> subprocess.CompletedProcess[bytes]:
    """Run p2pcloop with some of its standard streams closed."""
    keep = [f"{fd}{'<' if fd == 0 else '>'}&-" for fd in sorted(closed)]
    script = f'exec "$@" {" ".join(keep)}'
    return subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | {"P2PCLOOP_HOME": str(home)},
    )


@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {0, 1}, {0, 2}, {0, 1, 2}])
def test_a_command_works_with_streams_closed(closed: set[int], home: Path) -> None:
    """Were one left closed, the next socket or file would be taken for it."""
    assert run_closed(closed, "key", "new", "mine", home=home).returncode == 0
    listed = run_closed(closed, "key", "list", "--json", home=home)
    assert listed.returncode == 0
    if 1 not in closed:
        assert len(json.loads(listed.stdout)["keys"]) == 1


def test_a_node_starts_and_stops_with_all_streams_closed(home: Path) -> None:
    closed = {0, 1, 2}
    try:
        assert run_closed(closed, "daemon", "start", home=home).returncode == 0
        status = run_closed({0, 2}, "status", "--json", home=home)
        assert json.loads(status.stdout)["torrents"] == []
    finally:
        assert run_closed(closed, "daemon", "stop", home=home).returncode == 0


def test_an_error_shows_no_escapes_of_a_file_name(p2pcloop: Run, tmp_path: Path) -> None:
    ran = p2pcloop("info", str(tmp_path / "a\x1b]0;owned\x07\nb"))
    assert ran.code == 7
    assert r"a\x1b]0;owned\x07\nb" in ran.err
    assert "\x1b" not in ran.err


def test_an_error_is_json_where_that_is_asked_for(p2pcloop: Run, tmp_path: Path) -> None:
    ran = p2pcloop("info", str(tmp_path / "none"), "--json")
    assert ran.code == 7
    error = json.loads(ran.out)["error"]
    assert (error["class"], error["exit_code"]) == ("NotHereError", 7)
    assert error["message"] in ran.err


def test_a_current_directory_that_is_gone_is_named(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    program = [sys.executable, "-P", "-c", f"import os; os.rmdir({str(folder)!r}); {PROGRAM}"]
    ran = subprocess.run(
        [*program, "images", "--home", "relative", "--json"],
        cwd=folder,
        capture_output=True,
        check=False,
        env=os.environ | {"P2PCLOOP_HOME": str(home)},
    )
    assert ran.returncode == 11
    assert b"the current directory is gone" in ran.stderr
    assert json.loads(ran.stdout)["error"]["class"] == "StorageError"


def test_an_error_of_the_system_is_json_too(p2pcloop: Run, tmp_path: Path) -> None:
    ran = p2pcloop("key", "import", "mine", str(tmp_path), "--json")  # it is a directory
    assert ran.code == 11
    error = json.loads(ran.out)["error"]
    assert (error["class"], error["exit_code"]) == ("StorageError", 11)
    assert str(tmp_path) in error["message"]


@pytest.mark.parametrize(
    "words",
    [["run", "/nonexistent", "--", "jq", "--json"], ["export", "/nonexistent", "-", "--json"]],
)
def test_the_standard_output_of_others_holds_no_error(p2pcloop: Run, words: list[str]) -> None:
    ran = p2pcloop(*words)
    assert ran.code == 7
    assert ran.out == ""


def test_a_wrong_word_is_json_too(p2pcloop: Run) -> None:
    ran = p2pcloop("key", "list", "--nonsense", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["error"]["class"] == "UsageError"
    assert "--nonsense" in ran.err


def run_into(out: str, *arguments: object, home: Path) -> subprocess.CompletedProcess[bytes]:
    """Run p2pcloop with its standard output in a file."""
    with open(out, "wb") as file:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
            env=os.environ | {"P2PCLOOP_HOME": str(home)},
        )


@pytest.mark.parametrize(
    "words",
    [["--help"], ["key", "list"], ["key", "list", "--json"], ["images"], ["export", "IMAGE", "-"]],
    ids=" ".join,
)
def test_an_output_that_takes_nothing_is_named(
    home: Path, tmp_path: Path, words: list[str]
) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(range(256)) * 64)
    assert run_closed(set(), "key", "new", "mine", home=home).returncode == 0
    ran = run_into("/dev/full", *(image if w == "IMAGE" else w for w in words), home=home)
    assert ran.returncode == 11
    assert b"the standard output: No space left on device" in ran.stderr
    assert b"Traceback" not in ran.stderr


@pytest.mark.parametrize("words", [["info", "/nonexistent"], ["key", "list", "--nonsense"]])
def test_an_error_keeps_its_code_where_its_json_cannot_be_written(
    home: Path, words: list[str]
) -> None:
    ran = run_into("/dev/full", *words, "--json", home=home)
    assert ran.returncode == (7 if words[0] == "info" else 2)
    assert words[-1].encode() in ran.stderr
    assert b"Traceback" not in ran.stderr


def test_an_error_keeps_its_code_where_nobody_can_be_told(home: Path) -> None:
    script = f'exec "{sys.executable}" -c "$0" info /nonexistent 2>/dev/full'
    env = os.environ | {"P2PCLOOP_HOME": str(home)}
    ran = subprocess.run(["sh", "-c", script, PROGRAM], timeout=120, check=False, env=env)
    assert ran.returncode == 7


@pytest.mark.parametrize(
    "words",
    [["export", "IMAGE", "-"], ["key", "export", "mine"], ["picture", "IMAGE", "-o", "-"]],
    ids=" ".join,
)
def test_nothing_is_written_to_a_standard_output_that_is_closed(
    home: Path, tmp_path: Path, words: list[str]
) -> None:
    """It ended well, and what was asked for was lost."""
    image = tmp_path / "a.img"
    image.write_bytes(bytes(range(256)) * 64)
    assert run_closed({1}, "key", "new", "mine", home=home).returncode == 0
    ran = run_closed({1}, *(str(image) if w == "IMAGE" else w for w in words), home=home)
    assert ran.returncode == 2
    assert b"the standard output is closed" in ran.stderr


@pytest.mark.parametrize("where", ["/dev/full", "a pipe without a reader"])
def test_remarks_that_cannot_be_written_end_no_command(where: str) -> None:
    read, pipe = os.pipe()
    os.close(read)
    script = "from p2pcloop.client.terminal import notify; notify('a'); notify('b'); print('done')"
    with open(where, "wb") if where.startswith("/") else os.fdopen(pipe, "wb") as refusing:
        ran = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=refusing,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (0, "done\n")


def test_output_that_cannot_be_written_is_not_called_a_lost_node(home: Path) -> None:
    environment = os.environ | {"P2PCLOOP_HOME": str(home)}
    try:
        assert run_closed(set(), "daemon", "start", home=home).returncode == 0
        with open("/dev/full", "wb") as full:
            ran = subprocess.run(
                [sys.executable, "-c", PROGRAM, "status", "--watch"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=environment,
            )
        assert (ran.returncode, "the standard output" in ran.stderr) == (11, True)
        assert "lost" not in ran.stderr
    finally:
        assert run_closed(set(), "daemon", "stop", home=home).returncode == 0
    stopped = run_closed(set(), "status", "--json", home=home)
    assert json.loads(stopped.stdout)["error"]["class"] == "DaemonError"


def test_ctrl_c_while_modules_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    program = [sys.executable, "-c", "from p2pcloop.cli.start import main; main()"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
