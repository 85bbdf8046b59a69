"""Completion by a table says what click says, for every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete, ShellComplete, get_completion_class

from p2pcloop.cli.completion import Offer, answer_shell, complete, make_table
from p2pcloop.cli.main import cli

TABLE: dict[str, Any] = json.loads(json.dumps(make_table(click.Context(cli, info_name="p2pcloop"))))


def paths(table: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield above
    for name, inner in table.get("commands", {}).items():
        yield from paths(inner, (*above, name))


def situations(path: tuple[str, ...]) -> Iterator[tuple[list[str], str]]:
    """Words before the one that is typed, and that one."""
    table = TABLE
    for name in path:
        table = table["commands"][name]
    yield from (([*path], begun) for begun in ("", "-", "--", "--h", "s", "/"))
    for _, names, takes, *_ in table["options"]:
        if takes:
            yield from (([*path, names[0]], begun) for begun in ("", "n"))
        elif names[0] != "--help":
            yield [*path, names[0]], "--"
    if "commands" not in table:
        yield [*path, "word"], ""
        yield [*path, "word"], "-"


def told_by_click(words: list[str], begun: str) -> list[Offer]:
    shell = BashComplete(cli, {}, "p2pcloop", "_P2PCLOOP_COMPLETE")
    items = shell.get_completions(words, begun)
    return [
        Offer(item.type, item.value, item.help and " ".join(item.help.split())) for item in items
    ]


@pytest.mark.parametrize("path", list(paths(TABLE)), ids="-".join)
def test_the_table_says_what_click_says(path: tuple[str, ...]) -> None:
    decided = 0
    for words, begun in situations(path):
        offers = complete(TABLE, words, begun)
        if offers is not None:
            assert offers == told_by_click(words, begun), (words, begun)
            decided += 1
    assert decided > 5


@pytest.mark.parametrize(
    ("words", "begun"),
    [
        (["ls"], ""),
        (["bot"], ""),
        (["boot", "--"], ""),
        (["boot", "--vm=q"], ""),
        (["boot"], "--vm=q"),
        (["boot", "--no-such"], ""),
    ],
    ids=str,
)
def test_what_the_table_does_not_know_is_left_to_click(words: list[str], begun: str) -> None:
    assert complete(TABLE, words, begun) is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("line", ["p2pcloop bo", "p2pcloop boot --d", "p2pcloop daemon "], ids=str)
def test_a_shell_gets_the_answer_that_click_gives(
    shell: str,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = line.split()
    number = len(words) - (not line.endswith(" "))
    begun = "" if line.endswith(" ") else words[-1]
    environment = {
        "_P2PCLOOP_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": begun if shell == "fish" else str(number),
    }
    table = tmp_path / "table"
    table.write_text(json.dumps(TABLE))
    assert answer_shell(table, environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kind = get_completion_class(shell)
    assert kind is not None
    by_click: ShellComplete = kind(cli, {}, "p2pcloop", "_P2PCLOOP_COMPLETE")
    told = " ".join(by_click.complete().split())
    assert " ".join(capsys.readouterr().out.split()) == told != ""


def test_without_a_table_or_with_quotes_click_answers(tmp_path: Path) -> None:
    asked = {"_P2PCLOOP_COMPLETE": "bash_complete", "COMP_WORDS": "p2pcloop b", "COMP_CWORD": "1"}
    assert not answer_shell(tmp_path / "none", asked)
    table = tmp_path / "table"
    table.write_text(json.dumps(TABLE))
    assert not answer_shell(table, asked | {"COMP_WORDS": "p2pcloop 'b"})
    assert not answer_shell(table, asked | {"_P2PCLOOP_COMPLETE": "bash_source"})
    assert not answer_shell(table, {})


def test_the_answer_loads_no_command_and_no_click(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text(json.dumps(TABLE))
    code = (
        "import sys; from pathlib import Path; from p2pcloop.cli.completion import answer_shell\n"
        f"assert answer_shell(Path({str(table)!r}))\n"
        "print(*sorted({'click', 're', 'inspect', 'trio'} & set(sys.modules)), file=sys.stderr)"
    )
    asked = {"_P2PCLOOP_COMPLETE": "bash_complete", "COMP_WORDS": "p2pcloop boo", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "plain,boot\n"
    assert "click" not in done.stderr
    assert "trio" not in done.stderr
