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
import msgpack
import pytest
from click.shell_completion import BashComplete, ShellComplete, get_completion_class

from p2pcloop.cli.completion import (
    Offer,
    answer_shell,
    complete,
    home_of,
    make_table,
    names_of,
)
from p2pcloop.cli.main import cli
from p2pcloop.store.home import Home

TABLE: dict[str, Any] = json.loads(json.dumps(make_table(click.Context(cli, info_name="p2pcloop"))))


KEYS = ["nocr" + "y" * 48, "nocx" + "y" * 48]


@pytest.fixture
def known(home: Path) -> Home:
    """A home that knows images and guests, as far as completion looks."""
    names = [f"@{KEYS[0]}/debian", f"@{KEYS[0]}/knoppix", f"@{KEYS[1]}/debian"]
    found = Home.at(home)
    found.names.write_bytes(msgpack.packb({"format": 2, "names": [{"name": n} for n in names]}))
    found.short_names.write_text(f"mine {names[0]}\n")
    for guest, file in (("g1", "control.sock"), ("g2", "log"), ("vm", "control.sock")):
        (found.guests / guest).mkdir(parents=True)
        (found.guests / guest / "record.json").touch()
        (found.guests / guest / file).touch()
    return found


def offered(home: Home, kind: str, begun: str) -> list[str]:
    return [offer.value for offer in names_of(home.root)(kind, begun) if offer.kind == "plain"]


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
def test_the_table_says_what_click_says(path: tuple[str, ...], known: Home) -> None:
    decided = 0
    for words, begun in situations(path):
        offers = complete(TABLE, words, begun, names_of(known.root))
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
    assert complete(TABLE, words, begun, names_of(Path())) is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    "line",
    ["p2pcloop bo", "p2pcloop boot --d", "p2pcloop daemon ", "p2pcloop boot m", "p2pcloop stop "],
    ids=str,
)
def test_a_shell_gets_the_answer_that_click_gives(
    shell: str,
    line: str,
    known: Home,
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
        "P2PCLOOP_HOME": str(known.root),
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


def test_names_of_images_and_guests_are_offered(known: Home) -> None:
    first, last = "@nocryyyy", "@nocxyyyy"
    everything = ["mine", f"{first}/debian", f"{first}/knoppix", f"{last}/debian"]
    assert offered(known, "image", "") == everything
    assert offered(known, "image", "m") == ["mine"]
    assert offered(known, "image", "@noc") == everything[1:]
    assert offered(known, "image", "@nocr/k") == ["@nocr/knoppix"]
    assert offered(known, "image", "@nocx/") == ["@nocx/debian"]
    assert offered(known, "image", f"{last}yy") == [f"{last}yy/debian"]
    assert offered(known, "ref", "./deb") == []
    assert names_of(known.root)("ref", "./deb") == [Offer("file", "./deb")]
    assert offered(known, "guest", "") == ["g1", "g2", "vm"]
    assert offered(known, "running", "") == ["g1", "vm"]
    assert offered(known, "running", "v") == ["vm"]


def test_a_home_that_is_not_there_or_damaged_offers_nothing(known: Home, tmp_path: Path) -> None:
    for kind in ("image", "guest", "running"):
        assert offered(Home.at(tmp_path / "none"), kind, "") == []
    known.names.write_bytes(b"\x81\xa5names\x91\xc0")
    known.short_names.write_bytes(b"\xff")
    assert offered(known, "image", "") == []


@pytest.mark.parametrize(
    ("words", "number", "told"),
    [
        ("p2pcloop boot @", 2, ["nocryyyy/debian", "nocryyyy/knoppix", "nocxyyyy/debian"]),
        ("p2pcloop boot @ nocr/k", 3, ["nocr/knoppix"]),
        ("p2pcloop diff @ nocr/k @ nocx", 5, ["nocxyyyy/debian"]),
    ],
)
def test_bash_which_breaks_words_at_an_at_sign_gets_what_is_behind_it(
    words: str, number: int, told: list[str], known: Home, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """COMP_WORDBREAKS has `@` (bash(1)), and click hands the words over as bash breaks them."""
    table = tmp_path / "table"
    table.write_text(json.dumps(TABLE))
    asked = {"_P2PCLOOP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    assert answer_shell(table, asked | {"P2PCLOOP_HOME": str(known.root)})
    lines = capsys.readouterr().out.split()
    assert [line.removeprefix("plain,") for line in lines if line.startswith("plain")] == told


def test_the_home_of_a_command_line_is_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("P2PCLOOP_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert home_of(["p2pcloop", "boot"], os.environ) == Home.at().root
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home_of(["p2pcloop", "boot"], os.environ) == Home.at().root
    assert home_of(["p2pcloop"], {"P2PCLOOP_HOME": "/x"}) == Path("/x")
    assert home_of(["p2pcloop", "--home", "/y", "boot"], {"P2PCLOOP_HOME": "/x"}) == Path("/y")


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
        env=os.environ | asked, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == "plain,boot\n"
    assert "click" not in done.stderr
    assert "trio" not in done.stderr
