"""How an error leaves a program: one line, a hint, an exit code, and JSON where that is wanted."""

from __future__ import annotations

import click

from p2pcloop.cli.options import to_json
from p2pcloop.errors import P2pcloopError
from p2pcloop.text import printable


def report_error(err: P2pcloopError, *, as_json: bool = False) -> int:
    """Tell an error on stderr; return what to exit with.

    Args:
        as_json: tell it on the standard output as well, as JSON (docs/commands.md).
    """
    if as_json and not err.facts_told:
        _tell_json(type(err).__name__, str(err), err.hint, err.exit_code)
    # A message may hold what strangers wrote: names of files, words of a guest or a server.
    click.echo(f"p2pcloop: {printable(str(err))}", err=True)
    if err.hint:
        click.echo(f"  hint: {printable(err.hint)}", err=True)
    return err.exit_code


def report_usage(err: click.ClickException, *, as_json: bool = False) -> int:
    """Tell what is wrong with the words of the command line, as `report_error` does."""
    if as_json:
        _tell_json("UsageError", err.format_message(), None, err.exit_code)
    err.show()
    return err.exit_code


def _tell_json(kind: str, message: str, hint: str | None, exit_code: int) -> None:
    facts = {"class": kind, "message": message, "hint": hint, "exit_code": exit_code}
    click.echo(to_json({"error": facts}))
