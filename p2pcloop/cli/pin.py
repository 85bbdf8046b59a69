"""`p2pcloop pin`: images that are never evicted."""

from __future__ import annotations

import click

from p2pcloop.cli.options import IMAGE, at_option, home_option, json_option
from p2pcloop.client.refs import resolve_stored
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import say
from p2pcloop.store.home import Home
from p2pcloop.store.pins import load_pins
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop pin @key/debian
  p2pcloop fetch @key/debian     # what stays is what is here: this fetches the rest
  p2pcloop pin                   # lists what is pinned
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE, required=False)
@at_option
@home_option
@json_option
def command(ref: str | None, at: int, home: Home, *, as_json: bool) -> None:
    """Let nothing of the image REF be evicted; without REF, list what is pinned.

    A version is pinned, not a name: of a newer version only the layers of the pinned one stay.
    """
    if ref is None:
        _list(home, as_json=as_json)
        return
    target = stored_image(ref, home, at)
    with target.client:
        target.client.call("pin", manifest=target.signed.id)
        here = target.here()
    version = target.signed.manifest.version
    if as_json:
        facts = {"name": target.name, "version": version, "manifest": target.signed.id}
        click.echo(to_json(facts | {"stored": target.stored, "here": here}))
        return
    rest = "" if here == target.stored else tr("; `p2pcloop fetch` fetches the rest")
    share = tr(
        "{here} of {stored} are here{rest}",
        here=format_size(here),
        stored=format_size(target.stored),
        rest=rest,
    )
    say(
        tr(
            "{target}, version {version}, is pinned: {share}",
            target=target.name,
            version=version,
            share=share,
        )
    )


def stored_image(ref: str, home: Home, at: int) -> StoredRef:
    """The image that is pinned or unpinned; errors as of `resolve_stored`."""
    why, hint = tr("it is yours, and nothing deletes it"), tr("give a link or @key/label")
    return resolve_stored(ref, home, at=at, why_no_file=why, hint=hint)


def _list(home: Home, *, as_json: bool) -> None:
    pins = load_pins(home)
    if as_json:
        rows = [{"name": name, "manifest": manifest} for manifest, name in pins.items()]
        click.echo(to_json({"pins": rows}))
        return
    for manifest, name in pins.items():
        say(tr("{name}  {manifest}", name=name, manifest=manifest.hex()))
