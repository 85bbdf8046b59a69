"""Manual pages (man(7)) of every command, made from the text of its `--help`.

python -m tools.man_pages FOLDER
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from p2pcloop import __version__, errors
from p2pcloop.cli.commands import COMMANDS, SECTIONS
from p2pcloop.cli.main import cli
from p2pcloop.formats.config import SETTINGS
from p2pcloopd.node.main import command as daemon
from tools.json_table import rows_of

_VERBATIM = "\b"
"""In help, a line with this alone stands before a paragraph whose lines are kept (click)."""

_ROOT = "p2pcloop"

_FILES = (
    (
        "~/.local/share/p2pcloop",
        "The home of a node, unless --home or P2PCLOOP_HOME names another.",
    ),
    ("~/.local/share/p2pcloop/config.toml", "Settings of that node."),
    ("/etc/p2pcloop/config.toml", "Settings of every node of this machine; the home's go first."),
)

_ENVIRONMENT = (
    ("P2PCLOOP_HOME", "The home of the node, as --home gives it."),
    ("P2PCLOOP_KERNEL", "The kernel of guests, as --kernel gives it."),
)


def commands() -> Iterator[tuple[str, click.Context]]:
    """Every command that a user can type: its name in full, and its context."""
    yield from _with_subcommands(click.Context(cli, info_name=_ROOT))
    yield "p2pcloopd", click.Context(daemon, info_name="p2pcloopd")


def _with_subcommands(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    yield context.command_path, context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            if not command.hidden:
                inner = click.Context(command, parent=context, info_name=name)
                yield from _with_subcommands(inner)


def page_name(path: str) -> str:
    """The name of a command's page: "p2pcloop-daemon-start"."""
    return path.replace(" ", "-")


def write_pages(folder: Path) -> list[Path]:
    """Write the page of each command below a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path, context in commands():
        page = folder / f"{page_name(path)}.1"
        page.write_text(make_page(path, context), "utf-8")
        written.append(page)
    return written


def make_page(path: str, context: click.Context) -> str:
    """The manual page of one command, as text for man(1)."""
    name = page_name(path)
    lines = [
        '.\\" Made from the help of the command: change that.',
        f'.TH {_quoted(name.upper())} 1 "" {_quoted(f"p2pcloop {__version__}")} "p2pcloop"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary(path, context.command))}",
        ".SH SYNOPSIS",
        ".nh",
        f".B {_text(path)}",
        _text(" ".join(context.command.collect_usage_pieces(context))),
        ".hy",
        ".SH DESCRIPTION",
        *_help_text(context.command.help or ""),
        *_options(context),
        *_subcommands(path, context),
        *_help_text(context.command.epilog or ""),
        *_settings(path),
        *_json(path),
        *_ending(path),
    ]
    return "\n".join(lines) + "\n"


def summary(path: str, command: click.Command) -> str:
    """What a command does in one sentence, without its full stop: as `p2pcloop --help` has it, or
    the first sentence of its own help."""
    program, _, name = path.partition(" ")
    if program == _ROOT and name in COMMANDS:
        return COMMANDS[name][1].removesuffix(".")
    first = command.short_help or inspect.cleandoc(command.help or "").split("\n\n")[0]
    return re.split(r"(?<=[^.])\.(?:\s|$)", " ".join(first.split()), maxsplit=1)[0]


def _help_text(text: str) -> list[str]:
    """Paragraphs of help; a verbatim one is set as it is, its first line as a heading if it is
    one ("Examples:")."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        rows = [row for row in paragraph.splitlines() if row.strip()]
        if not rows:
            continue
        if rows[0].strip(" ") != _VERBATIM:
            lines += [".PP", _text(" ".join(row.strip() for row in rows))]
            continue
        rows = rows[1:]
        if rows and re.fullmatch(r"[A-Z]\w+:", rows[0].strip()):
            lines.append(f".SH {_text(rows.pop(0).strip().rstrip(':').upper())}")
        else:
            lines.append(".PP")
        indent = min((len(row) - len(row.lstrip()) for row in rows), default=0)
        lines += [".nf", *(_text(row[indent:]) for row in rows), ".fi"]
    return lines


def _options(context: click.Context) -> list[str]:
    options = [
        each for each in context.command.get_params(context) if isinstance(each, click.Option)
    ]
    shown = [record for option in options if (record := option.get_help_record(context))]
    lines = [".SH OPTIONS"] if shown else []
    for words, text in shown:
        lines += [".TP", f".B {_text(words)}", _text(" ".join(text.split()))]
    return lines


def _subcommands(path: str, context: click.Context) -> list[str]:
    if not isinstance(context.command, click.Group):
        return []
    lines = [".SH COMMANDS"]
    headings = {next(iter(commands)): title for title, commands in SECTIONS.items()}
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        assert command is not None
        full = f"{path} {name}"
        if path == _ROOT and name in headings:
            lines.append(f".SS {_text(headings[name])}")
        lines += [".TP", f".BR {_text(page_name(full))} (1)", f"{_text(summary(full, command))}."]
    return lines


def _settings(path: str) -> list[str]:
    if path != f"{_ROOT} config":
        return []
    return [".SH SETTINGS", *_pairs([(each.key, each.about) for each in SETTINGS.values()])]


def _json(path: str) -> list[str]:
    """What `--json` of a command prints, from the table of the manual."""
    rows = rows_of(path.removeprefix(f"{_ROOT} "))
    if not rows:
        return []
    plain = [(_plain(what), _plain(keys)) for what, keys in rows]
    return [".SH JSON", *_pairs(plain)]


def _plain(markdown: str) -> str:
    """Markdown without its marks: names of code, links."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "").replace("\\|", "|")


def _ending(path: str) -> list[str]:
    """What every page ends with, and what the page of the program itself says for all."""
    lines = []
    if path == _ROOT:
        lines += [".SH EXIT STATUS", *_pairs(_exit_codes())]
        lines += [".SH ENVIRONMENT", *_pairs(_ENVIRONMENT), ".SH FILES", *_pairs(_FILES)]
    above = [] if path == _ROOT else [_ROOT]
    if path.count(" ") > 1:
        above.append(path.rpartition(" ")[0])
    others = [page_name(each) for each in above] or ["p2pcloopd"]
    return [*lines, ".SH SEE ALSO", ", ".join(f"\\fB{_text(name)}\\fR(1)" for name in others)]


def _exit_codes() -> list[tuple[str, str]]:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    known = {
        kind.exit_code: " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
        for kind in kinds
        if issubclass(kind, errors.P2pcloopError) and kind is not errors.P2pcloopError
    }
    known |= {0: "Done.", 1: "Any other error.", 130: "Ended by Ctrl-C."}
    return [(str(code), known[code]) for code in sorted(known)]


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [line for term, text in pairs for line in (".TP", f".B {_text(term)}", _text(text))]


def _text(text: str) -> str:
    """A line of text as roff takes it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = escaped.replace("`", "\\(ga").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'


def main(args: Sequence[str] | None = None) -> None:
    """Write all pages; print their names."""
    parser = argparse.ArgumentParser(prog="tools.man_pages", description="Write the manual pages.")
    parser.add_argument("folder", type=Path)
    for page in write_pages(parser.parse_args(args).folder):
        print(page)


if __name__ == "__main__":
    main()
