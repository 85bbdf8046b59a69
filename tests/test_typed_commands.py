"""Each command of p2pcloop in the manual, in the examples and in --help is one that it takes.

Options, the number of arguments and the values of options are compared with the commands' own
parsers. Nothing is run, and no file is looked for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from p2pcloop.catalogue import FOLDER, read_entries
from p2pcloop.cli.commands import COMMANDS
from p2pcloop.cli.main import cli
from p2pcloop.formats.config import SETTINGS

CHECKOUT = Path(__file__).parents[1]
MANUAL = [page for page in CHECKOUT.glob("docs/**/*.md") if page.parent.name != "measurements"]
"""Without the measurements, which stay as they were written."""
PAGES = sorted([CHECKOUT / "README.md", *MANUAL])
NO_FORMATS = [page for page in PAGES if page.parent.name != "formats"]
"""The formats' names are written as commands are: `p2pcloop layer 1`."""
SCRIPTS = sorted(CHECKOUT.glob("examples/*.sh"))

OPERATORS = frozenset("|&;()<>")
INLINE = re.compile(r"`(p2pcloop [^`]+)`")
NOT_TYPED = re.compile(r"[─│▶◀]|\[OPTIONS\]")
"""Drawings, and the usage of a command in reference.md, which is made of its parser."""


def commands_in(line: str) -> Iterator[list[str]]:
    """The words behind each `p2pcloop` of a shell's line, without what an array stands for."""
    line = line.replace("@<key>", "@key")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(sorted(OPERATORS)))
    lexer.whitespace_split = True
    command: list[str] | None = None
    for word in [*lexer, ";"]:
        if set(word) <= OPERATORS or word == "$":
            if command is not None:
                yield command[:-1] if word[0] in "<>" and command[-1:] == ["2"] else command
            command = None
        elif word == "p2pcloop" and not command:  # or its user: sudo -u p2pcloop p2pcloop …
            command = []
        elif command is not None and not word.endswith("[@]}"):
            command.append(word)


def typed_on(page: Path) -> Iterator[str]:
    """The lines that a page tells its reader to type: of a session those behind a `$`."""
    fence = ""
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = "" if fence else line.removeprefix("```") or "text"
        elif fence == "console" or line.lstrip().startswith("$ "):
            yield from [line.lstrip()[2:]] if line.lstrip().startswith("$ ") else []
        elif NOT_TYPED.search(line):
            continue
        elif fence == "sh" or (not fence and line.startswith("    ")):
            yield line.strip()


def _check_value(parameter: click.Parameter, value: str, context: click.Context) -> None:
    """Convert it, unless it is a file, which would have to exist."""
    if not isinstance(parameter.type, click.Path | click.File):
        parameter.type.convert(value, parameter, context)


def fault(words: list[str], *, whole: bool) -> str | None:
    """Why p2pcloop would refuse these words, or None.

    Of a command that is not whole (`p2pcloop boot` in a sentence) only the words that are there
    are looked at, and no value, since REF and SIZE stand for one.
    """
    command: click.Command = cli
    context = click.Context(cli, info_name="p2pcloop")
    words = [*words]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        word = words.pop(0)
        for name in word.split("|"):  # as in a table: `key new|list`
            found = command.get_command(context, name)
            if found is None:
                return None if not whole and not word.islower() else f"no command {name}"
        assert found is not None
        command, context = found, click.Context(found, info_name=word, parent=context)
    if isinstance(command, click.Group):
        return None
    try:
        given, surplus, _ = command.make_parser(context).parse_args(words)
        if surplus:
            return f"one argument too many: {surplus[0]}"
        for parameter in command.params if whole and not given.get("help") else ():
            value = given.get(parameter.name or "")
            if parameter.required and not isinstance(value, str | list | tuple):
                return f"{parameter.human_readable_name} is missing"
            if isinstance(value, str) and not value.startswith("$"):
                _check_value(parameter, value, context)
    except click.UsageError as error:
        return error.format_message()
    return None


def faults(lines: Iterator[str], *, whole: bool) -> list[tuple[str, str]]:
    """The commands that p2pcloop would refuse, and why."""
    commands = [words for line in lines if "p2pcloop" in line for words in commands_in(line)]
    looked_at = [(" ".join(words), fault(words, whole=whole)) for words in commands]
    return [(words, why) for words, why in looked_at if why]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_is_taken(page: Path) -> None:
    assert faults(typed_on(page), whole=True) == []


@pytest.mark.parametrize("page", NO_FORMATS, ids=lambda page: page.stem)
def test_commands_in_sentences_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = (match.replace("\n", " ") for match in INLINE.findall(prose))
    assert faults(inline, whole=False) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_an_example_runs_is_taken(script: Path) -> None:
    lines = script.read_text().replace("\\\n", " ").splitlines()
    assert faults((line for line in lines if "p2pcloop" in line), whole=True) == []


def test_what_help_tells_to_type_is_taken() -> None:
    context = click.Context(cli, info_name="p2pcloop")
    helps = [cli.get_help(context)]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        helps.append(command.get_help(click.Context(command, info_name=name, parent=context)))
    examples = [line.strip() for text in helps for line in text.splitlines()]
    assert faults((line for line in examples if line.startswith("p2pcloop ")), whole=True) == []


def test_messages_name_the_command_that_changes_a_setting() -> None:
    """And not the key alone, which is written otherwise in config.toml, in a table."""
    messages = [entry.id for entry in read_entries((FOLDER / "ja.po").read_text())]
    by_hand = re.compile(r"`[a-z_.]+`[^`]*config\.toml|[Ss]et `")
    assert [message for message in messages if by_hand.search(message)] == []
    keys = [key for message in messages for key in re.findall(r"config set (\S+) ", message)]
    assert "listen" in keys
    assert {key for key in keys if key.islower()} - {"{key}"} <= SETTINGS.keys()
    # Of a node with another home it would change the settings of the user's own.
    commands = [
        each for text in messages for each in re.findall(r"`(p2pcloop config set .*?)`", text)
    ]
    assert [each for each in commands if not each.endswith(" {home}")] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("p2pcloop boo x", "no command boo"),
        ("p2pcloop key make x", "no command make"),
        ("p2pcloop boot x --overlays y", "No such option"),
        ("p2pcloop boot", "REF is missing"),
        ("p2pcloop boot x y", "one argument too many: y"),
        ("p2pcloop block x --at new", "is not a valid integer"),
        ("sudo p2pcloop netboot x --lan eth0 --dhcp maybe", "is not one of"),
        ("cat x | p2pcloop run y --mem cat -- cat && true", "is not a size"),
    ],
)
def test_what_p2pcloop_does_not_take_is_found(line: str, why: str) -> None:
    ((_, told),) = faults(iter([line]), whole=True)
    assert why in told
