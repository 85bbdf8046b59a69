"""The command `p2pcloop`: its help, and how errors are reported.

A command's module is imported only when that command is named, so that `--help` and every other
command stay quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from p2pcloop.cli.commands import ALIASES, COMMANDS, SECTIONS
from p2pcloop.client.terminal import (
    OUTPUT,
    STDOUT_NAMES,
    open_standard_streams,
    report_error,
    report_usage,
)
from p2pcloop.errors import P2pcloopError, storage_error
from p2pcloop.loading import loading
from p2pcloop.text import printable
from p2pcloop.words import language, tr, translated, use

_EPILOG = """
\b
Examples:
  p2pcloop seed debian.cloop --name debian
  p2pcloop boot 'magnet:?xt=...' --overlay mine.delta
  p2pcloop status --watch
"""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        with loading():
            command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        if language() != "en":
            from p2pcloop.cli.translating import translate_command  # noqa: PLC0415  else not needed

            translate_command(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed; name those that may have been meant where it is none."""
        typed = args[0]
        if typed not in COMMANDS and typed not in ALIASES and not typed.startswith("-"):
            ctx.fail(
                translated(
                    tr(
                        "No such command {typed!r}.{meant}",
                        typed=printable(typed),
                        meant=_meant(typed),
                    )
                )
            )
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin so, without loading any, and options."""
        items = [
            CompletionItem(name, help=translated(help_line))
            for name, (_, help_line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in SECTIONS.items():
            with formatter.section(translated(title)):
                lines = [(name, translated(text)) for name, (_, text) in commands.items()]
                formatter.write_dl([(name.ljust(_NAME_WIDTH), text) for name, text in lines])


_NAME_WIDTH = max(map(len, COMMANDS))
"""Of each section's first column, so that the second begins in the same place in all."""


def _meant(typed: str) -> str:
    import difflib  # noqa: PLC0415  it takes a sixth of the time of --help to load

    near = difflib.get_close_matches(typed, [*COMMANDS, *ALIASES])
    return tr(" Did you mean: {near}?", near=", ".join(near)) if near else ""


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="p2pcloop", prog_name="p2pcloop")
@click.pass_context
def cli(context: click.Context) -> None:
    """Boot compressed block images from peers, keep the changes in an overlay, pass them on.

    Without a command it tells what is here, and what to do next.
    """
    if context.invoked_subcommand is None:
        from p2pcloop.cli.next_steps import print_next_steps  # noqa: PLC0415  not for a command
        from p2pcloop.store.home import Home  # noqa: PLC0415  as above

        print_next_steps(Home.at(os.environ.get("P2PCLOOP_HOME") or None))


def _ours(words: list[str]) -> list[str]:
    """The words of a command: those behind `--` belong to the guest's."""
    return words[: words.index("--")] if "--" in words else words


def _writes_image(ours: list[str]) -> bool:
    """Whether an image goes to the standard output, which then takes no error."""
    return ours[:1] == ["export"] and not STDOUT_NAMES.isdisjoint(ours)


def _use_language() -> None:
    use(os.environ)
    if language() != "en":
        from p2pcloop.cli.translating import (  # noqa: PLC0415  English users pay for none
            translate_click,
            translate_command,
        )

        translate_click()
        translate_command(cli)


def _is_gone() -> bool:
    """Whether the current directory was deleted."""
    try:
        return not Path.cwd()
    except OSError:
        return True


def _report_system(err: OSError, *, as_json: bool) -> int:
    """Report an error of the system: of a file that the user named, or of the output."""
    if err.filename is None and _is_gone():
        what = tr("the current directory is gone")
        hint = tr("go to another one: `cd`")
        return report_error(storage_error(what, err, hint=hint), as_json=as_json)
    if err.filename in (None, OUTPUT):
        # It may be that no output can be written, JSON neither. The interpreter must not flush it
        # again. (click treats a pipe without a reader: exit code 1.)
        sys.stdout, as_json = None, False
    what = tr("cannot use {path}", path=err.filename) if err.filename else tr("the system refused")
    return report_error(storage_error(what, err), as_json=as_json)


def main() -> None:
    """Run the command line; every error ends as one line, a hint and its exit code."""
    open_standard_streams()
    ours = _ours(sys.argv[1:])
    as_json = "--json" in ours and not _writes_image(ours)
    if "--json" not in ours:  # programs read English, which they may look for
        _use_language()
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except P2pcloopError as err:
        sys.exit(report_error(err, as_json=as_json))
    except click.ClickException as err:
        sys.exit(report_usage(err, as_json=as_json))
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except OSError as err:
        sys.exit(_report_system(err, as_json=as_json))


if __name__ == "__main__":
    main()
