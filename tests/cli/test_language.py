"""The command line in the language of the user's locale."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import click
import pytest
from click.testing import CliRunner

from p2pcloop.cells import cells
from p2pcloop.cli import ps, status_screen
from p2pcloop.client import terminal
from p2pcloop.client.control_client import AWAITED
from p2pcloop.client.rehearsal import rehearse
from p2pcloop.store.home import Home
from p2pcloop.words import language, tr, translated, use
from p2pcloopd.commands import background, boot, mount
from p2pcloopd.guest import with_block_server
from p2pcloopd.mount.mounting import MountSpec


def ran(home: Path, *words: str, locale: str = "ja_JP.UTF-8") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the language is that of the process."""
    environment = os.environ | {"LC_ALL": locale, "P2PCLOOP_HOME": str(home), "COLUMNS": "90"}
    environment |= {"PYTHONUTF8": "1"}  # this machine may know no locale but C
    return subprocess.run(
        [sys.executable, "-m", "p2pcloop.cli.main", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
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


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("config", "    p2pcloop config show"),
        ("key", "    p2pcloop key trust @<key>         # そのステートは確認なしに再開できる"),
        ("limit", "    p2pcloop limit"),
        ("boot", "    p2pcloop boot debian.cloop"),
    ],
)
def test_examples_in_help_keep_their_lines(home: Path, command: str, example: str) -> None:
    told = ran(home, command, "--help").stdout
    assert example in told.splitlines()
    assert "\b" not in told


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


def test_json_is_english_where_an_image_goes_to_the_output(home: Path) -> None:
    told = [
        ran(home, "export", "/nowhere/x.cloop", "-", "--json", locale=locale)
        for locale in ("ja_JP.UTF-8", "C.UTF-8")
    ]
    assert told[0].stdout == told[1].stdout == ""
    assert told[0].stderr == told[1].stderr


def test_a_rehearsal_speaks_the_language_of_its_command(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--json` that is English, whatever the locale."""
    given: dict[str, str] = {}

    def start(*_: object, env: dict[str, str], **__: object) -> NoReturn:
        given.update(env)
        raise OSError("not now")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(OSError, match="not now"):
        rehearse("@key/x", 1, Home(home))
    assert given["LANGUAGE"] == "en"


def test_the_result_of_a_command_is_in_the_language_of_the_user(home: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(1 << 20))
    told = ran(home, "verify", str(image)).stdout
    assert told == "1.0 MB を読みました。raw イメージには照合するハッシュがありません\n"


@pytest.fixture
def japanese() -> Iterator[None]:
    use({"LANG": "ja_JP.UTF-8"})
    yield
    use({})


@pytest.mark.usefixtures("japanese")
def test_questions_are_in_the_language_of_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def prompt(question: str, **_: object) -> str:
        asked.append(question)
        return "x"

    monkeypatch.setattr(click, "prompt", prompt)
    monkeypatch.setattr(terminal, "_check_terminal", lambda _why: None)
    terminal.ask_passphrase("k1")
    terminal.choose_passphrase("k2")
    terminal.ask_trust("k3")
    assert asked == [
        "k1 のパスフレーズ",
        "k2 の新しいパスフレーズ",
        "その鍵を信頼して続けますか?",
    ]
    assert "(docs/security.md)" in (told := capsys.readouterr().err)
    assert not told.isascii()


@pytest.mark.usefixtures("japanese")
def test_what_p2pcloopd_is_waited_for_has_a_translation() -> None:
    assert [each for each in AWAITED.values() if translated(each) == each] == []


@pytest.mark.usefixtures("japanese")
def test_the_name_of_a_guest_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """`done` is a text of the page."""
    assert translated("done") != "done"
    assert ps._table([("done", tr("NAME"))]) == ["done  名前"]
    assert status_screen._line("done").plain == "done"
    monkeypatch.setattr(background, "in_background", lambda _work: "done")
    result = CliRunner().invoke(boot.command, ["x.cloop", "--detach", "--name", "done"])
    assert result.output == "done\n"


class StopError(Exception):
    """The log of a guest is open."""


@pytest.mark.usefixtures("japanese")
def test_logs_of_guests_are_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = []
    monkeypatch.setattr(os, "dup2", lambda _old, new: streams.append(new))
    monkeypatch.setattr(with_block_server, "_with_channel", lambda *_: (None, None))

    def end(*_: object) -> NoReturn:
        raise StopError

    monkeypatch.setattr(with_block_server, "_boot", end)
    own: Any = SimpleNamespace(name="g", folder=SimpleNamespace(log_path=tmp_path / "log"))
    ready = with_block_server.ReadyGuest(own, *[cast("Any", None)] * 3)
    with pytest.raises(StopError):
        with_block_server.boot_reachable(ready, print, keep=False, quiet=False)
    assert (streams, language()) == ([sys.stderr.fileno()], "en")


@pytest.mark.usefixtures("japanese")
def test_the_log_of_mounts_is_english(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(mount, "run", lambda serve: serve.args[1]())
    Home(home).create()
    assert mount._serve(MountSpec(Home(home), home), lambda _name: None) == 0
    assert language() == "en"


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "en_US.UTF-8", "xx_XX.UTF-8"])
def test_other_languages_are_english(home: Path, locale: str) -> None:
    assert ran(home, "info", "--help", locale=locale).stdout.startswith("Usage: ")
    assert "No image is known in" in ran(home, locale=locale).stdout


def test_next_steps_are_in_the_language_of_the_user(home: Path) -> None:
    told = ran(home).stdout
    assert "リンクのイメージを" in told
    assert "serve an image" not in told


def test_the_table_of_guests_stands_in_columns_of_cells() -> None:
    lines = ps._table([("名前", "状態"), ("g1", "up"), ("long-name", "ゲスト")])
    assert [
        cells(line[: line.index(last)])
        for line, last in zip(lines, ("状態", "up", "ゲスト"), strict=True)
    ] == [11, 11, 11]
