"""`p2pcloop unpin`: let pinned images be evicted again."""

from __future__ import annotations

import click

from p2pcloop.cli.options import IMAGE, at_option, home_option, json_option
from p2pcloop.cli.pin import stored_image
from p2pcloop.client.terminal import say
from p2pcloop.formats.link import is_link
from p2pcloop.formats.pasted import clean_pasted
from p2pcloop.store.home import Home
from p2pcloop.store.pins import load_pins
from p2pcloop.text import to_json
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop unpin @key/debian              # every version of it
  p2pcloop unpin @key/debian --at 3
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@at_option
@home_option
@json_option
def command(ref: str, at: int, home: Home, *, as_json: bool) -> None:
    """Let the image REF be evicted again: the version of a link or --at, or all of a name.

    This deletes nothing, unless the store is over its quota.
    """
    target = stored_image(ref, home, at)
    one_version = bool(at) or is_link(clean_pasted(ref))
    unpinned = []
    with target.client:
        for manifest, name in load_pins(home).items():
            if name != target.name or (one_version and manifest != target.signed.id):
                continue
            if target.client.call("unpin", manifest=manifest)["was"]:
                unpinned.append(manifest)
    if as_json:
        click.echo(to_json({"name": target.name, "unpinned": unpinned}))
    elif unpinned:
        say(tr("{target} is not pinned any more", target=target.name))
    else:
        say(tr("{target} was not pinned", target=target.name))
