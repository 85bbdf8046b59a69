"""How an error leaves a program: one line, a hint, an exit code."""

from __future__ import annotations

import click

from p2pcloop.errors import P2pcloopError


def report_error(err: P2pcloopError) -> int:
    """Tell an error on stderr; return what to exit with."""
    click.echo(f"p2pcloop: {err}", err=True)
    if err.hint:
        click.echo(f"  hint: {err.hint}", err=True)
    return err.exit_code
