"""`p2pcloop fetch`: fetch all of an image."""

from __future__ import annotations

import click

from p2pcloop.cli.options import IMAGE, at_option, home_option, json_option
from p2pcloop.client.fetch import fetch_all
from p2pcloop.client.refs import resolve_stored, typed_ref
from p2pcloop.client.terminal import say
from p2pcloop.client.traffic import measure_traffic
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop fetch 'magnet:?xt=...'
  p2pcloop fetch @key/debian --json
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@at_option
@home_option
@json_option
def command(ref: str, at: int, home: Home, *, as_json: bool) -> None:
    """Fetch all of REF, so that it boots without peers and is served to others.

    For REF `-` it comes on standard input.
    """
    target = resolve_stored(
        typed_ref(ref),
        home,
        at=at,
        why_no_file=tr("it is here already"),
        hint="give a link or @key/label",
    )
    with target.client:
        before = target.client.call("status")
        fetch_all(target, quiet=as_json)
        facts = measure_traffic(before, target.client.call("status"))
    sealed = target.signed.manifest.private and target.secret is None
    if as_json:
        told = {"name": target.name, "manifest": target.signed.id, "readable": not sealed}
        click.echo(to_json(told | facts))
        return
    what = (
        tr("is here, sealed: without its key (#key= of its link) it") if sealed else tr("is here")
    )
    can = tr(" is seeded, not read") if sealed else ""
    say(
        tr(
            "{target} {what}{can}; {bytes_received} came in",
            target=target.name,
            what=what,
            can=can,
            bytes_received=format_size(facts["bytes_received"]),
        )
    )
