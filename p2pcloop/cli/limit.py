"""`p2pcloop limit`: the limits of a node's rates."""

from __future__ import annotations

import click

from p2pcloop.cli.config import parse_value, write_settings
from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.terminal import say
from p2pcloop.formats.config import read_settings
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr


@click.command()
@click.option("--up", metavar="RATE", help="Bytes a second to all peers together; 0: no limit.")
@click.option("--down", metavar="RATE", help="Bytes a second from all peers; 0: no limit.")
@home_option
@json_option
def command(up: str | None, down: str | None, home: Home, as_json: bool) -> None:
    """Show the limits of the node's rates, or set them: at once, and for its next starts.

    \b
    Examples:
      p2pcloop limit
      p2pcloop limit --up 1M --down 0
    """
    asked = {"upload_limit": up, "download_limit": down}
    wanted = {key: parse_value(key, value) for key, value in asked.items() if value is not None}
    if wanted:
        write_settings(home, wanted, as_json=as_json)
        return
    found = read_settings(home.config)
    limits = {key: found.get(key, (0, None))[0] for key in asked}
    if as_json:
        click.echo(to_json(limits))
        return
    for key, value in limits.items():
        say(
            tr(
                "{key}: {what}",
                key=key,
                what=tr("{what} bytes a second", what=value) if value else tr("none"),
            )
        )
