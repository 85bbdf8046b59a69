"""docs/reference.md: every command and every option, made from the text of `--help`.

python -m tools.reference_page
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

import click

from p2pcloop.cli.commands import SECTIONS
from p2pcloop.formats.config import SETTINGS
from tools.json_table import CHECKOUT
from tools.man_pages import commands, summary

PAGE = CHECKOUT / "docs/reference.md"

_HEAD = """\
# Reference

<!-- Made by `python -m tools.reference_page` from the help of the commands. Do not edit it. -->

All commands, options and settings in few words. [commands.md](commands.md) has exit codes and JSON,
[metrics.md](metrics.md) the metrics. `p2pcloop COMMAND --help` says more of each command, and gives
examples.

Every command has `--help` (`-h`), which is left out below. `--home DIR` chooses the node, and
`--quiet` (`-q`) leaves out progress and remarks.
"""

_WIDTH = 100
_EVERYWHERE = {"--help", "--home", "--quiet"}


def page() -> str:
    """The text of the page."""
    return "\n".join([_HEAD, *_commands(), "## Settings", "", *_settings()]) + "\n"


def _commands() -> Iterator[str]:
    headings = {next(iter(inside)): title for title, inside in SECTIONS.items()}
    for path, context in commands():
        name = path.partition(" ")[2]
        if path.count(" ") == 1 and name in headings:
            yield from (f"## {headings[name]}", "")
        if path == "p2pcloopd":
            yield from ("## The daemon", "")
        if isinstance(context.command, click.Group):
            continue
        usage = " ".join([path, *context.command.collect_usage_pieces(context)])
        told = textwrap.fill(f"{summary(path, context.command)}.", _WIDTH)
        yield from (f"### {path}", "", f"    {usage}", "", told, "")
        if rows := list(_options(context)):
            yield from ("| option | what it does |", "| --- | --- |", *rows, "")


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        if not isinstance(parameter, click.Option) or _EVERYWHERE & set(parameter.opts):
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            words, text = record
            yield f"| `{_cell(words)}` | {_cell(inspect.cleandoc(text))} |"


def _settings() -> Iterator[str]:
    yield from ("| key | what it sets | at once |", "| --- | --- | --- |")
    for setting in SETTINGS.values():
        yield f"| `{setting.key}` | {_cell(setting.about)} | {'yes' if setting.live else ''} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
