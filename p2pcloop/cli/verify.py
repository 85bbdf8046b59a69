"""`p2pcloop verify`: compare what is here with its hashes."""

from __future__ import annotations

from typing import Any

import click

from p2pcloop.cli.options import home_option, json_option, to_json
from p2pcloop.cli.progress import progress_bar
from p2pcloop.cli.refs import StoredRef, report_waiting, resolve_ref
from p2pcloop.errors import CorruptError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.local import ImageFile, make_index
from p2pcloop.store.home import Home
from p2pcloop.units import format_size

_EPILOG = """
\b
Examples:
  p2pcloop verify KNOPPIX.cloop
  p2pcloop verify @key/debian
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", metavar="REF|FILE")
@home_option
@json_option
def command(ref: str, home: Home, *, as_json: bool) -> None:
    """Read all of REF that is here and compare it with its hashes.

    Damaged pieces of a stored image are dropped and fetched again when they are needed. A cloop
    is decoded whole; an overlay's tables are checked. Exit code 4 tells that something was wrong.
    """
    target = resolve_ref(ref, home)
    if isinstance(target, StoredRef):
        with target.client:
            facts = _verify_stored(target, quiet=as_json)
    else:
        facts = _verify_file(target, quiet=as_json)
    if as_json:
        click.echo(to_json(facts))
    else:
        click.echo(", ".join(f"{value} {key}" for key, value in facts.items()))
    if facts.get("bad"):
        raise CorruptError(
            f"{facts['bad']} of {facts['pieces']} pieces were damaged and dropped",
            hint="they are fetched again when they are needed, or now with `p2pcloop fetch`",
        )


def _verify_stored(ref: StoredRef, *, quiet: bool) -> dict[str, Any]:
    pieces, bad = 0, 0
    for layer in ref.signed.manifest.layers:
        with progress_bar("verifying", quiet=quiet) as show:

            def on_event(event: str, fields: dict[str, Any]) -> None:
                if event == "progress":
                    show(fields["checked"], fields["pieces"])
                report_waiting(event, fields)

            answer = ref.client.call("verify", on_event, torrent=layer.torrent)
        pieces += answer["pieces"]
        bad += len(answer["bad"])
    return {"pieces": pieces, "bad": bad}


def _verify_file(file: ImageFile, *, quiet: bool) -> dict[str, Any]:
    if file.kind == "overlay":
        with Overlay.open(file.path, image_id=None, read_only=True) as overlay:
            info = overlay.info()
        return {"changed blocks": info.data_blocks, "zeroed blocks": info.zero_blocks}
    with progress_bar("verifying", quiet=quiet) as progress:
        make_index(file, progress)
    return {"read and decoded": format_size(file.size)}
