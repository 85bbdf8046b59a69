"""`p2pcloop verify`: compare an image with its hashes."""

from __future__ import annotations

from typing import Any

import click

from p2pcloop.cli.options import REF, at_option, home_option, json_option
from p2pcloop.client.fetch import verify_layer
from p2pcloop.client.progress import progress_bar, waiting_for
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import say
from p2pcloop.errors import CorruptError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import make_index
from p2pcloop.making.pack import device_size
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop verify KNOPPIX.cloop
  p2pcloop verify @key/debian
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=REF, metavar="REF|FILE")
@at_option
@home_option
@json_option
def command(ref: str, at: int, home: Home, *, as_json: bool) -> None:
    """Read the part of REF that is here and compare it with its hashes.

    Damaged pieces of a stored image are dropped, and fetched again when they are needed. A cloop
    is decoded whole; a raw image is read; the tables of an overlay are checked. Exit codes 3 and 4:
    something was wrong.
    """
    target = resolve_ref(ref, home, at=at)
    if isinstance(target, StoredRef):
        with target.client:
            facts, text = _verify_stored(target, quiet=as_json)
    else:
        facts, text = _verify_file(target, quiet=as_json)
    if as_json:
        click.echo(to_json(facts))
    else:
        say(text)
    if facts.get("bad"):
        raise CorruptError(
            tr(
                "{bad} of {pieces} pieces were damaged and dropped",
                bad=facts["bad"],
                pieces=facts["pieces"],
            ),
            hint="they are fetched again when they are needed, or now with `p2pcloop fetch`",
        )


def _verify_stored(ref: StoredRef, *, quiet: bool) -> tuple[dict[str, Any], str]:
    checked = ref.verified()
    pieces, bad = 0, 0
    for layer in ref.signed.manifest.all_layers:
        answer = verify_layer(ref, layer, quiet=quiet)
        pieces += answer["pieces"]
        bad += len(answer["bad"])
    facts = {"name": ref.name, "stored": ref.stored, "checked": checked}
    text = tr(
        "checked what is here, {checked} of {stored}",
        checked=format_size(checked),
        stored=format_size(ref.stored),
    )
    return facts | {"pieces": pieces, "bad": bad}, tr(
        "{text}: {bad} bad pieces", text=text, bad=bad
    )


def _verify_file(file: ImageFile, *, quiet: bool) -> tuple[dict[str, Any], str]:
    facts: dict[str, Any] = {"file": str(file.name), "format": file.kind}
    if file.kind == "overlay":
        with (
            waiting_for("the tables of the overlay"),
            Overlay.open(file.path, image_id=None, read_only=True, mode=None) as overlay,
        ):
            info = overlay.info()
        changed, zeroed = info.data_blocks * BLOCK_SIZE, info.zero_blocks * BLOCK_SIZE
        text = tr(
            "its tables are whole: {changed} changed, {zeroed} zeroed",
            changed=format_size(changed),
            zeroed=format_size(zeroed),
        )
        return facts | {"changed": changed, "zeroed": zeroed}, text
    with progress_bar("verifying", quiet=quiet) as progress:
        progress(0, device_size(file))
        make_index(file, progress)
    size = format_size(file.size)
    if any(part.kind == "cloop" for part in file.parts):
        text = tr("{size} read and decoded: every block is whole", size=size)
    else:
        text = tr("{size} read; a raw image has no hashes to compare with", size=size)
    return facts | {"checked": file.size}, text
