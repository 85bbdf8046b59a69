"""`p2pcloop optimize`: a version of an image that boots sooner."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import (
    file_options,
    first_option,
    home_option,
    json_option,
    key_option,
    new_version_option,
    public_option,
)
from p2pcloop.cli.seed import warn_if_only_here
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.hot import HotMaker, Optimized
from p2pcloop.client.image_file import check_publishable
from p2pcloop.client.profiles import Subject, read_profile
from p2pcloop.client.publisher import Content, Publisher, newest_of
from p2pcloop.client.refs import StoredRef, resolve_ref
from p2pcloop.client.seed import seed_content
from p2pcloop.client.stored import open_stored
from p2pcloop.errors import NotHereError, UsageError
from p2pcloop.formats.profile import Profile
from p2pcloop.making.local import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import ancestors, fit_profile
from p2pcloop.store.sources import remember_source
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size

_EPILOG = """
\b
Examples:
  p2pcloop optimize @key/debian --name debian
  p2pcloop optimize debian.cloop --profile debian.profile --name debian
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", metavar="REF|IMAGE")
@click.option("--name", "label", required=True, metavar="LABEL", help="What you call the image.")
@click.option(
    "--profile",
    "profile_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What a boot reads.  [default: what is known here, see `p2pcloop profile show`]",
)
@click.option(
    "--message",
    "-m",
    default="optimized",
    show_default=True,
    metavar="TEXT",
    help="What to say about it.",
)
@new_version_option
@file_options
@key_option
@first_option
@public_option
@home_option
@json_option
def command(
    ref: str,
    label: str,
    profile_file: Path | None,
    message: str,
    key_name: str | None,
    home: Home,
    *,
    as_new_version: bool,
    first: bool,
    public: bool,
    as_json: bool,
) -> None:
    """Publish REF, or IMAGE (as of `seed`), with what a boot reads packed together once more.

    The new version has the layers of its base, whose peers serve them on, and on top one small
    layer: the blocks of a boot's profile, in order of first touch, compressed hard. What the image
    holds is not changed. An IMAGE is seeded first, as by `seed`.
    """
    target = resolve_ref(ref, home)
    profile = None if profile_file is None else read_profile(profile_file)[1]
    with ExitStack() as stack:
        client = stack.enter_context(ensure_daemon(home))
        who = stack.enter_context(Publisher.of(home, client, label, key_name, first=first))
        maker = HotMaker(who, home, as_json)
        if isinstance(target, ImageFile):
            check_publishable(target)
            profile = profile or _known_profile(target, maker)
            target = _seed(target, maker, public=public, as_new_version=as_new_version)
            who = replace(who, newest=target)
        else:
            stack.enter_context(target.client)
        who.check_secret(target.secret)
        touches = _touches(target, profile, home, tell=profile_file is not None)
        made = maker.optimize(open_stored(target, home, stack), touches)
        answer = who.release(
            made.content, message=message, parent=made.parent, public=public, secret=target.secret
        )
    _tell(answer | {"base": target.name} | _facts(made), home, as_json=as_json)


def _known_profile(file: ImageFile, maker: HotMaker) -> Profile:
    """What boots of a file recorded, or of the newest version; as it lies, a raw image has another
    id than packed.

    Raises:
        NotHereError: none is known, so that nothing need be seeded.
    """
    with ExitStack() as stack:
        try:
            return Subject.open(file, maker.home, stack, quiet=maker.quiet).find(maker.home).profile
        except (NotHereError, UsageError):  # or a cloop that has to be repacked
            if maker.who.image is None:
                raise
    return Subject.of_stored(maker.who.image).find(maker.home).profile


def _seed(file: ImageFile, maker: HotMaker, *, public: bool, as_new_version: bool) -> StoredRef:
    """Publish an image file, unless the newest version is that, or that with a layer on top."""
    who, home = maker.who, maker.home
    content, _ = seed_content(file, who, home, quiet=maker.quiet, as_new_version=as_new_version)
    if who.image is not None and _stands_on(who.image, content, maker):
        return who.image
    who.release(content, public=public)
    remember_source(home, who.name, file.source)
    seeded = newest_of(who.client, who.name)
    assert seeded is not None, "it was published just now"
    return seeded


def _stands_on(newest: StoredRef, content: Content, maker: HotMaker) -> bool:
    """Whether a version has just that content, with a hot layer or without."""
    layers = newest.signed.manifest.layers
    if layers[:-1] != content.layers:
        return layers == content.layers
    with ExitStack() as stack:
        return maker.without_top(open_stored(newest, maker.home, stack)) is not None


def _touches(target: StoredRef, profile: Profile | None, home: Home, *, tell: bool) -> bytes:
    """The packed touches of a profile, by default of the one that is known.

    Args:
        tell: tell where it is of another image.
    """
    manifest = target.signed.manifest
    if profile is None:
        profile = Subject.of_stored(target).find(home).profile
    before = (manifest, *ancestors(home, manifest))
    touches, remark = fit_profile(profile, manifest.image_id, manifest.size, before)
    if remark and tell:
        click.echo(remark, err=True)
    return touches


def _facts(made: Optimized) -> dict[str, Any]:
    return {
        "size": made.content.device_length,
        "layers": len(made.content.layers),
        "stored": made.layer.pack_length,
        "index": len(made.layer.index),
        "stored_blocks": made.layer.stored_blocks,
        "zero_blocks": made.layer.zero_blocks,
        "replaced": made.replaced,
    }


def _tell(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    warn_if_only_here(answer["link"], home)
    if as_json:
        click.echo(to_json(answer))
        return
    if not answer["changed"]:
        click.echo(f"nothing changed: it is {answer['name']}, version {answer['version']}, still")
    else:
        click.echo(f"serving {answer['name']}, version {answer['version']}")
        blocks = format_size(answer["stored_blocks"] * BLOCK_SIZE)
        packed = format_size(answer["stored"])
        where = "in place of what was packed before" if answer["replaced"] else "on top of its base"
        click.echo(f"  {packed} packed, of {blocks} that a boot reads, {where}")
    if not answer["profile"]:
        click.echo(
            "it is private, so its profile is not attached: `p2pcloop profile attach` does so"
        )
    click.echo(f"boot it with:\n  p2pcloop boot '{answer['link']}'")
