"""What a script relies on is in the manual, and what the manual lists is there."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import click

from p2pcloop import errors
from p2pcloop.cli.commands import COMMANDS
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.config import SETTINGS
from tools.json_table import CHECKOUT, commands_of, json_rows, keys_of, rows_of, undocumented
from tools.man_pages import commands, make_page
from tools.reference_page import PAGE, page

MANUAL = "\n" + (CHECKOUT / "docs/commands.md").read_text()
LEAVES = {
    path.removeprefix("p2pcloop "): context
    for path, context in commands()
    if path not in ("p2pcloop", "p2pcloopd") and not isinstance(context.command, click.Group)
}


def table(heading: str) -> list[list[str]]:
    """The rows of the first table behind a heading of commands.md."""
    section = MANUAL.partition(f"\n{heading}\n")[2]
    rows = re.findall(r"^\|(.*)\|$", section.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows[2:]]


def test_the_page_of_all_options_is_of_this_version() -> None:
    assert PAGE.read_text() == page(), "run `python -m tools.reference_page`"


def test_every_command_is_in_the_table_of_commands() -> None:
    named = {
        name for row in table("# Commands") for name in re.findall(r"`(?:p2pcloop )?(\w+)", row[0])
    }
    assert set(COMMANDS) <= named


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    known = {(str(k.exit_code), k.__name__) for k in kinds if issubclass(k, P2pcloopError)}
    told = {(code, name) for code, name, _ in table("## Exit codes")}
    assert told == known | {("0", ""), ("130", "")}
    pages = {path: make_page(path, context) for path, context in commands()}
    status = pages["p2pcloop"].partition(".SH EXIT STATUS")[2].partition(".SH ")[0]
    assert set(re.findall(r"^\.B (\d+)$", status, re.MULTILINE)) == {code for code, _ in told}


def test_every_setting_is_in_the_manual_and_its_man_page() -> None:
    text = (CHECKOUT / "docs/daemon.md").read_text()
    block = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    assert set(flat(block)) == set(SETTINGS)
    context = dict(commands())["p2pcloop config"]
    man = make_page("p2pcloop config", context)
    assert all(f".B {key}\n" in man for key in SETTINGS)


def flat(values: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{key}.")
        else:
            yield prefix + key


def test_commands_with_json_are_those_in_the_table() -> None:
    printing = {
        path
        for path, context in LEAVES.items()
        if any("--json" in option.opts for option in context.command.params)
    }
    assert {name for row in json_rows() for name in commands_of(row[0])} == printing
    for path in printing:
        man = make_page(f"p2pcloop {path}", LEAVES[path]).partition(".SH JSON")[2]
        words = set(re.findall(r"[\w@]+", man.replace("\\-", "-").replace("\\(aq", "'")))
        keys = {key for _, cell in rows_of(path) for key in re.findall(r"`(\w+)`", cell)}
        assert keys <= words


def test_each_key_of_the_table_is_a_word_of_the_program() -> None:
    """Tests that run a command with --json compare the other way round (documented.py)."""
    words: set[str] = set()
    for path in [*CHECKOUT.glob("p2pcloop/**/*.py"), *CHECKOUT.glob("daemon/**/*.py")]:
        words |= set(words_of(ast.parse(path.read_text())))
    keys = {key for _, cell in json_rows() for key in re.findall(r"`([a-z_]\w*)`", cell)}
    assert keys - words - set(COMMANDS) == set()


def words_of(tree: ast.AST) -> Iterator[str]:
    """Strings, names of arguments, and names of fields."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(str(text)):
                yield text
            case ast.keyword(str(name)):
                yield name
            case ast.AnnAssign(ast.Name(name)):
                yield name
            case ast.Assign([ast.Name(name)]):  # of an enumeration
                yield name.lower()


def test_keys_that_the_table_lacks_are_found() -> None:
    assert {"have_bytes", "suspended_as", "listen"} <= keys_of("status")
    assert undocumented("stop", {"guests": [{"name": "g", "orderly": True}]}) == set()
    assert undocumented("stop", {"guests": [{"nmae": "g"}], "more": {"x": 1}}) == {"nmae", "more"}
