"""`p2pcloop stop`: end guests, in order."""

from __future__ import annotations

from contextlib import ExitStack

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.guests import SHUTDOWN_SECONDS, GuestProcess
from p2pcloop.store.home import Home
from p2pcloop.text import to_json

_EPILOG = """
\b
Examples:
  p2pcloop stop g1
  p2pcloop stop g1 g2 --time 10
  p2pcloop stop g1 --time 0          # at once, as pulling the plug does
"""


@click.command(epilog=_EPILOG)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--time",
    "seconds",
    type=click.IntRange(0, SHUTDOWN_SECONDS),
    default=SHUTDOWN_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long a guest may take to shut down before it is ended at once.",
)
@home_option
@json_option
def command(names: tuple[str, ...], seconds: int, home: Home, *, as_json: bool) -> None:
    """Shut guests down in order (Ctrl-Alt-Del), one after the other; return when they have ended.

    A guest that does not shut down in time is ended at once. What it had flushed to its overlay is
    durable.
    """
    with ExitStack() as stack:
        # All are looked up before the first is ended.
        guests = [stack.enter_context(GuestProcess(home, name)) for name in names]
        orderly = {guest.name: guest.stop(seconds) for guest in guests}
    if as_json:
        click.echo(to_json({"guests": [{"name": n, "orderly": o} for n, o in orderly.items()]}))
        return
    for name, ended in orderly.items():
        click.echo(f"{name} {'has shut down' if ended else 'was ended at once'}")
