"""The command line in the language of the user's locale."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcloop.cells import cells


def ran(home: Path, *words: str, locale: str = "ja_JP.UTF-8") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the language is that of the process."""
    environment = os.environ | {"LC_ALL": locale, "P2PCLOOP_HOME": str(home), "COLUMNS": "90"}
    environment |= {"PYTHONUTF8": "1"}  # this machine may know no locale but C
    return subprocess.run(
        [sys.executable, "-m", "p2pcloop.cli.main", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_is_in_the_language_of_the_user(home: Path) -> None:
    told = ran(home, "--help").stdout
    assert told.startswith("使い方: ")
    assert "\nゲスト:\n" in told
    assert "Boot an image" not in told
    assert all(cells(line) <= 90 for line in told.splitlines())


@pytest.mark.parametrize("command", ["boot", "key", "profile", "config"])
def test_help_of_commands_has_no_english_line(home: Path, command: str) -> None:
    told = ran(home, command, "--help").stdout
    options = told.partition("オプション:")[2]
    assert "このメッセージを表示して終了する。" in options
    assert "Show" not in told


def test_an_error_and_its_hint_are_in_the_language_of_the_user(home: Path) -> None:
    done = ran(home, "info", "/nowhere/x.cloop")
    assert done.returncode == 7
    assert "/nowhere/x.cloop" in done.stderr
    assert "there is no" not in done.stderr
    assert "  ヒント: " in done.stderr


def test_an_error_of_the_syntax_is_in_the_language_of_the_user(home: Path) -> None:
    done = ran(home, "boot", "--nonsense")
    assert done.returncode == 2
    assert "オプション '--nonsense' はありません。" in done.stderr


def test_json_is_english_whatever_the_language(home: Path) -> None:
    for words in (["info", "/nowhere/x.cloop"], ["doctor"]):
        japanese, english = (
            ran(home, *words, "--json", locale=locale) for locale in ("ja_JP.UTF-8", "C.UTF-8")
        )
        told, wanted = (
            re.sub(r"[0-9]+", "1", str(json.loads(each.stdout)))  # the time, the room on the disk
            for each in (japanese, english)
        )
        assert told == wanted
        assert japanese.stderr == english.stderr


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "en_US.UTF-8", "xx_XX.UTF-8"])
def test_other_languages_are_english(home: Path, locale: str) -> None:
    assert ran(home, "info", "--help", locale=locale).stdout.startswith("Usage: ")
    assert "No image is known in" in ran(home, locale=locale).stdout


def test_next_steps_are_in_the_language_of_the_user(home: Path) -> None:
    told = ran(home).stdout
    assert "リンクのイメージを" in told
    assert "serve an image" not in told


def test_the_table_of_guests_stands_in_columns_of_cells() -> None:
    from p2pcloop.cli.ps import _table  # noqa: PLC0415  the table alone

    lines = _table([("名前", "状態"), ("g1", "up"), ("long-name", "ゲスト")])
    assert [
        cells(line[: line.index(last)])
        for line, last in zip(lines, ("状態", "up", "ゲスト"), strict=True)
    ] == [11, 11, 11]
