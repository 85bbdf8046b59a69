"""The console driver, against bash on a pseudo-terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.descriptors import open_descriptors
from tools.console import Console, ConsoleError, strip_controls

PROMPT = r"ready# "
LIMIT = 120
ENV = {"PS1": "ready# ", "PATH": os.environ["PATH"], "TERM": "vt220"}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def shell(tmp_path: Path, lines: list[str]) -> Iterator[Console]:
    argv = ["bash", "--norc", "--noprofile", "-i"]
    log, errors = tmp_path / "console.log", tmp_path / "errors.log"
    with Console(
        argv, log=log, errors=errors, env=ENV, on_line=lines.append, patience=0
    ) as console:
        console.send_line("exec 2>&1")  # bash prompts on its standard error
        console.expect(PROMPT, LIMIT)
        yield console


def bash(script: str, tmp_path: Path, patience: float = 0) -> Console:
    return Console(
        ["bash", "-c", script],
        log=tmp_path / "console.log",
        errors=tmp_path / "errors.log",
        patience=patience,
    )


def test_run_returns_what_the_command_printed_and_nothing_else(shell: Console) -> None:
    assert shell.run("printf 'one\\ntwo\\n'", LIMIT) == "one\ntwo\n"
    assert shell.run("printf unfinished", LIMIT) == "unfinished"
    assert shell.run("true", LIMIT) == ""


def test_a_command_that_fails_is_told_with_its_output(shell: Console) -> None:
    with pytest.raises(ConsoleError, match=r"'ls /nonexistent' failed .*exit 2.*No such file"):
        shell.run("ls /nonexistent", LIMIT)
    assert shell.run("echo still there", LIMIT) == "still there\n"


def test_what_was_matched_is_not_matched_again(shell: Console) -> None:
    shell.send_line("echo o''nce")
    shell.expect(r"once\s", LIMIT)
    with pytest.raises(ConsoleError, match="no 'once' on the console"):
        shell.expect("once", 0.05)


def test_wait_reads_on_and_tells_the_exit_code(shell: Console, tmp_path: Path) -> None:
    shell.send_line("head -c 300000 /dev/zero | tr '\\0' x; exit 7")
    assert shell.wait(LIMIT) == 7
    assert (tmp_path / "console.log").read_bytes().count(b"x") >= 300000


def test_lines_are_told_without_control_sequences(shell: Console, lines: list[str]) -> None:
    shell.run("printf '\\033[1;32mgreen\\033[0m\\r\\n\\033[2Jnext\\n'", LIMIT)
    assert "green" in lines
    assert "next" in lines


def test_the_end_of_the_program_ends_a_wait_for_its_output(tmp_path: Path) -> None:
    with (
        bash("echo bye", tmp_path) as console,
        pytest.raises(ConsoleError, match="ended before it showed 'more'"),
    ):
        console.expect("more", LIMIT)


def test_standard_error_goes_to_its_own_file(tmp_path: Path) -> None:
    with bash("echo progress >&2; echo output", tmp_path) as console:
        console.expect("output", LIMIT)
        assert console.wait(LIMIT) == 0
    assert (tmp_path / "errors.log").read_text() == "progress\n"
    assert b"progress" not in (tmp_path / "console.log").read_bytes()


@pytest.mark.parametrize("patience", [0, 0.05])
def test_a_program_that_ignores_sigterm_is_ended_with_its_children(
    tmp_path: Path, patience: float
) -> None:
    script = "trap '' TERM HUP; sleep 1000 & echo child=$!; wait; sleep 1000"
    with bash(script, tmp_path, patience) as console:
        child = int(console.expect(r"child=(\d+)", LIMIT)[1])
    assert console.process.poll() == -signal.SIGKILL
    with pytest.raises(ConsoleError, match="ended before"):
        _wait_for_end_of(child, tmp_path)


def _wait_for_end_of(pid: int, tmp_path: Path) -> None:
    """`tail --pid` ends once the process is gone."""
    argv = ["tail", f"--pid={pid}", "-f", "/dev/null"]
    with Console(
        argv, log=tmp_path / "tail.log", errors=tmp_path / "tail.err", patience=0
    ) as console:
        console.expect("never", LIMIT)


def test_leaving_ends_a_program_in_order_when_it_listens(tmp_path: Path) -> None:
    script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done"
    with bash(script, tmp_path, patience=LIMIT) as console:
        console.expect("up", LIMIT)
    assert console.process.poll() == 3


def test_a_program_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        Console(["/nonexistent"], log=tmp_path / "l", errors=tmp_path / "e")
    assert open_descriptors() <= before


@given(st.text())
def test_stripped_lines_are_printable(line: str) -> None:
    stripped = strip_controls(line)
    assert stripped == "" or stripped.isprintable()
    assert strip_controls(stripped) == stripped


@given(st.text(st.characters(categories=["L", "N", "P"])))
def test_plain_text_stays_as_it_is(line: str) -> None:
    assert strip_controls(line) == line
