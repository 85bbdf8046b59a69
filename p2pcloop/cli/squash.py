"""`p2pcloop squash`: a version of the same content in fewer layers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from p2pcloop.cli.options import IMAGE, home_option, json_option, key_option, public_option
from p2pcloop.cli.published import report_link
from p2pcloop.client.delta import squash
from p2pcloop.client.fetch import fetch_all
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.refs import resolve_stored
from p2pcloop.client.terminal import say
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr, tr_n

_EPILOG = """
\b
Examples:
  p2pcloop squash @key/my-knoppix
  p2pcloop squash my-knoppix --all --json
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@click.option("--all", "whole", is_flag=True, help="One layer in place of all, the base too.")
@click.option(
    "--message",
    "-m",
    default="squashed",
    show_default=True,
    metavar="TEXT",
    help="What to say about it.",
)
@key_option
@public_option
@home_option
@json_option
def command(
    ref: str,
    message: str,
    key_name: str | None,
    home: Home,
    *,
    whole: bool,
    public: bool,
    as_json: bool,
) -> None:
    """Publish the newest version of your image REF again, as one delta over its lowest layer.

    The new layer refers to chunks of the layers between, if most of their blocks still show; other
    blocks are packed anew. The content of the image does not change.
    """
    target = resolve_stored(ref, home, why_no_file=tr("it has no layers"), hint="give @key/label")
    target.check_secret()
    with ExitStack() as stack:
        client = stack.enter_context(target.client)
        manifest = target.signed.manifest
        publisher = stack.enter_context(Publisher.of(home, client, manifest.label, key_name))
        publisher.check_newest(target, hint="what is not yours can be joined by `p2pcloop export`")
        if len(manifest.layers) <= (1 if whole else 2):
            answer: dict[str, Any] = {"name": target.name, "version": manifest.version}
            answer |= {"link": target.link, "changed": False, "layers": len(manifest.layers)}
        else:
            fetch_all(target, quiet=as_json)
            made = squash(target, publisher, stack, whole=whole, quiet=as_json)
            content = replace(
                made.content,
                boot=manifest.boot,
                length=manifest.length,
                machine=manifest.machine,
            )
            answer = publisher.release(
                content,
                message=message,
                parent=manifest.parent,
                public=public,
                secret=target.secret,
            )
            stored = 0 if made.delta is None else made.delta.pack_length
            answer |= {"layers": len(content.layers), "stored": stored}
    _report(answer, as_json=as_json)


def _report(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(answer))
    elif not answer["changed"]:
        say(
            tr(
                "nothing to join: {name} has {layers}",
                name=answer["name"],
                layers=_layers(answer["layers"]),
            )
        )
    else:
        say(tr("serving {name}, version {version}", name=answer["name"], version=answer["version"]))
        say(
            tr(
                "  {layers}, {stored} packed anew",
                layers=_layers(answer["layers"]),
                stored=format_size(answer["stored"]),
            )
        )
        report_link(answer)


def _layers(count: int) -> str:
    return tr_n("{count} layer", "{count} layers", count)
