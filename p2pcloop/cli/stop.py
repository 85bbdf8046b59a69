"""`p2pcloop stop`: end guests, in order."""

from __future__ import annotations

import click

from p2pcloop.cli.options import RUNNING, home_option, json_option
from p2pcloop.client.guests import SHUTDOWN_SECONDS, GuestProcess, names_or_all
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.terminal import say, warn
from p2pcloop.errors import P2pcloopError
from p2pcloop.store.guests import list_guests
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop stop g1
  p2pcloop stop g1 g2 --time 10
  p2pcloop stop g1 --time 0          # at once, as pulling the plug does
  p2pcloop stop --all
"""


@click.command(epilog=_EPILOG)
@click.argument("names", type=RUNNING, metavar="NAME...", nargs=-1)
@click.option("--all", "-a", "every", is_flag=True, help="All guests that run here.")
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
def command(
    names: tuple[str, ...], seconds: int, home: Home, *, every: bool, as_json: bool
) -> None:
    """Shut guests down in order (Ctrl-Alt-Del), one after the other; return when they have ended.

    A guest that does not shut down in time is ended at once. What it had flushed to its overlay is
    durable. If one of them does not run, the others are stopped all the same.
    """
    chosen = names_or_all(names, _running(home) if every else None)
    orderly: dict[str, bool] = {}
    errors: list[P2pcloopError] = []
    for name in chosen:
        try:
            with waiting_for(tr("the end of {name}", name=name)), GuestProcess(home, name) as guest:
                orderly[name] = guest.stop(seconds)
        except P2pcloopError as err:  # the others are stopped all the same
            errors.append(err)
    if as_json and (orderly or not errors):
        click.echo(to_json({"guests": [{"name": n, "orderly": o} for n, o in orderly.items()]}))
    else:
        late = (
            tr("did not shut down within {seconds} s: it was ended", seconds=seconds)
            if seconds
            else tr("was ended")
        )
        for name, ended in orderly.items():
            say(tr("{name} {late}", name=name, late=tr("has shut down") if ended else late))
        if not chosen:
            say("no guest runs here")
    if errors:
        for other in errors[1:]:
            warn(tr("p2pcloop: {other}", other=other))
        errors[0].facts_told = bool(orderly)
        raise errors[0]


def _running(home: Home) -> list[str]:
    return [each.record.name for each in list_guests(home) if each.state == "running"]
