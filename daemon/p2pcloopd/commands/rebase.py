"""`p2pcloop rebase`: a files overlay moves to another version of its image."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from p2pcloop.cli.options import FilePath, at_option, home_option, json_option
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.refs import made_on, resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import log_to_stderr, say
from p2pcloop.errors import MismatchError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.rebase import Conflict
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.words import tr
from p2pcloopd.guest.unseen.rebase import Move, image_id_of, move_overlay

_EPILOG = """
\b
Examples:
  p2pcloop rebase mine.delta --onto @key/knoppix
  p2pcloop rebase mine.delta --onto new.squashfs --base old.squashfs --ours
"""


@click.command(epilog=_EPILOG)
@click.argument("overlay", type=FilePath())
@click.option("--onto", required=True, metavar="REF", help="The image that it is to lie on.")
@click.option("--base", metavar="REF", help="The image that it lies on, where it names none.")
@click.option("--ours", "choice", flag_value="ours", help="Where both changed, keep the overlay's.")
@click.option("--theirs", "choice", flag_value="theirs", help="Where both changed, take REF's.")
@click.option(
    "--stop",
    "choice",
    flag_value="stop",
    default=True,
    help="Where both changed, tell what, and change nothing.  [default]",
)
@at_option
@home_option
@json_option
def command(
    overlay: Path, onto: str, base: str | None, choice: str, at: int, home: Home, *, as_json: bool
) -> None:
    """Move OVERLAY, of mode files, to a newer version of the image that it was made on.

    The overlay keeps its files, on top of those of the newer image. Files that both sides changed
    are listed.
    """
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s")
    home.create()
    # Held until the end: no guest may write it meanwhile.
    with Overlay.open(overlay, image_id=None, mode="files") as held:
        lies_on = held.info().image_id
        new = _checked(resolve_ref(onto, home, at=at))
        conflicts: list[Conflict] = []
        moved = image_id_of(new, home) != lies_on
        if moved:
            old = _checked(made_on(overlay, home) if base is None else resolve_ref(base, home))
            if image_id_of(old, home) != lies_on:
                raise _other_base(overlay, base)
            with waiting_for(tr("guests that compare the images")):
                conflicts, moved = move_overlay(Move(overlay.absolute(), old, new, home), choice)
    if as_json:
        click.echo(to_json({"moved": moved, "conflicts": [_facts(one) for one in conflicts]}))
    else:
        _report(conflicts)
    if conflicts and not moved:
        error = MismatchError(
            tr(
                "{overlay} and {onto} both changed what stands above; nothing was moved",
                overlay=overlay,
                onto=onto,
            ),
            hint="--ours keeps the overlay's side of each, --theirs takes the other's",
        )
        error.facts_told = True
        raise error
    if not as_json and moved:
        say(tr("{overlay} now lies on {onto}", overlay=overlay, onto=onto))
    elif not as_json:
        say(tr("{overlay} lies on {onto}", overlay=overlay, onto=onto))


def _other_base(overlay: Path, base: str | None) -> MismatchError:
    return MismatchError(
        tr("{overlay} was made on another image than {base}", overlay=overlay, base=base)
        if base
        else tr("{overlay} was made on another image than it names", overlay=overlay),
        hint="name the one that it was made on with --base",
    )


def _checked(target: ImageFile | StoredRef) -> ImageFile | StoredRef:
    if isinstance(target, StoredRef):
        target.check_secret()
    return target


def _facts(conflict: Conflict) -> dict[str, str]:
    path = f"/{conflict.path.decode(errors='backslashreplace')}"
    return {"path": path, "ours": conflict.ours, "theirs": conflict.theirs}


def _report(conflicts: list[Conflict]) -> None:
    for facts in map(_facts, conflicts):
        path = printable(facts["path"])
        say(
            tr(
                "{path}: {ours} here, {theirs} there",
                path=path,
                ours=facts["ours"],
                theirs=facts["theirs"],
            )
        )
