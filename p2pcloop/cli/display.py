"""`p2pcloop display`: how to open the display of a guest that runs."""

from __future__ import annotations

import click

from p2pcloop.cli.options import RUNNING, home_option, json_option
from p2pcloop.client.guests import GuestProcess, describe_display
from p2pcloop.client.terminal import say
from p2pcloop.errors import GuestError
from p2pcloop.store.guests import GuestFolder
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop display g1
  xdg-open "$(p2pcloop display g1 --json | jq -r .link)"    # of a guest with --display web
"""


@click.command(epilog=_EPILOG)
@click.argument("name", type=RUNNING)
@home_option
@json_option
def command(name: str, home: Home, *, as_json: bool) -> None:
    """Tell again how to open the display of the guest NAME: its address and its password.

    These are new at each `boot` and `start`, and stay while the guest runs.
    """
    with GuestProcess(home, name) as guest:
        display = guest.record.display
    if display is None:
        raise GuestError(
            tr("the guest {name} has no display", name=name),
            hint="`p2pcloop boot --display` gives one; `p2pcloop attach` leads to the console",
        )
    if as_json:
        click.echo(to_json(display))
    else:
        for line in describe_display(GuestFolder(home, name), display):
            say(line)
