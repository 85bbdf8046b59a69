"""Help and errors of the command line in another language than English: click's own texts, those of
commands and options, and lines of wide characters.

Loaded only for such a language.
"""

from __future__ import annotations

import gettext
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

import click

from p2pcloop.catalogue import placeholders
from p2pcloop.cells import cells, wrapped
from p2pcloop.words import tr, translated

_CLICK = (
    tr("Usage:"),
    tr("Options"),
    tr("Commands"),
    tr("Aborted!"),
    tr("Error: {message}"),
    tr("Error: The two entered values do not match."),
    tr("Error: invalid input"),
    tr("Try '{command} {option}' for help."),
    tr("Show this message and exit."),
    tr("Show the version and exit."),
    tr("Repeat for confirmation"),
    tr("Missing command."),
    tr("Missing argument"),
    tr("Missing option"),
    tr("Missing parameter"),
    tr("required"),
    tr("default: {default}"),
    tr("Invalid value: {message}"),
    tr("Invalid value for {param_hint}: {message}"),
    tr("No such option {name!r}."),
    tr("No such command {name!r}."),
    tr("Did you mean {possibility}?"),
    tr("Option {name!r} does not take a value."),
    tr("Option {name!r} requires an argument."),
    tr("Got unexpected extra argument ({args})"),
    tr("Got unexpected extra arguments ({args})"),
    tr("{value!r} is not one of {choices}."),
    tr("{value!r} is not {choice}."),
    tr("{value!r} is not a valid {number_type}."),
    tr("{value} is not in the range {range}."),
    tr("{name} {filename!r} does not exist."),
    tr("{name} {filename!r} is a directory."),
    tr("{name} {filename!r} is a file."),
    tr("{name} {filename!r} is not readable."),
)
"""Texts of click that users of p2pcloop meet. They are told by its words for gettext."""

_COMMENT = re.compile(r"^(  [^#\n]*\S\s+# )(.*)$", re.MULTILINE)


class _Formatter(click.HelpFormatter):
    """Help whose lines are counted in cells."""

    def write_text(self, text: str) -> None:
        """Write paragraphs; one that begins with a line `\\b` keeps its lines."""
        indent = " " * self.current_indent
        parts = []
        for part in text.strip("\n").split("\n\n"):
            first, _, rest = part.partition("\n")
            if first.strip() == "\b":
                lines = rest.split("\n")
            else:
                lines = wrapped(" ".join(part.split()), self.width - self.current_indent)
            parts.append("\n".join(indent + line for line in lines))
        self.write("\n\n".join(parts) + "\n")

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write terms, and beside each what it means."""
        rows = list(rows)
        first_column = min(max(cells(term) for term, _ in rows), col_max) + col_spacing
        indent = " " * self.current_indent
        width = max(self.width - first_column - 2, 10)
        for term, meaning in rows:
            lines = wrapped(meaning, width) if meaning else []
            room = first_column - cells(term)
            if lines and room >= col_spacing:
                self.write(f"{indent}{term}{' ' * room}{lines.pop(0)}\n")
            else:
                self.write(f"{indent}{term}\n")
            self.write("".join(f"{indent}{' ' * first_column}{line}\n" for line in lines))


def translate_click() -> None:
    """Have click tell its own texts in the language of this process."""
    click.Context.formatter_class = _Formatter
    for name, module in list(sys.modules.items()):
        if name.startswith("click.") and getattr(module, "_", None) is gettext.gettext:
            vars(module)["_"] = _of_click
            vars(module)["ngettext"] = _of_click_by_number


def _of_click(text: str) -> str:
    told = translated(text)
    try:
        return told if sorted(placeholders(told)) == sorted(placeholders(text)) else text
    except (TypeError, ValueError):
        return text


def _of_click_by_number(one: str, many: str, number: int) -> str:
    return _of_click(one if number == 1 else many)


def translate_command(command: click.Command) -> None:
    """Replace the help of a command, of its options and of the commands in it."""
    command.help = command.help and "\n\n".join(
        map(_paragraph, inspect.cleandoc(command.help).split("\n\n"))
    )
    command.short_help = command.short_help and translated(command.short_help)
    command.epilog = command.epilog and _epilog(command.epilog)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            parameter.help = translated(parameter.help)
    below: dict[str, Any] = getattr(command, "commands", {})
    for each in below.values():
        translate_command(each)


def _paragraph(text: str) -> str:
    """A paragraph of help; of examples, which keep their lines, the comments."""
    return _epilog(text) if text.startswith("\b") else translated(" ".join(text.split()))


def _epilog(text: str) -> str:
    """Examples, with the comments beside them."""
    text = _COMMENT.sub(lambda match: match[1] + translated(match[2]), text)
    return text.replace("Examples:", translated(tr("Examples:")))
