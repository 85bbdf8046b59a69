"""`p2pcloop optimize`: a version of an image that boots sooner."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import REF, FilePath, PublishOptions, new_version_option, publish_options
from p2pcloop.cli.published import publisher_of, report_link, report_version, warn_if_only_here
from p2pcloop.client.hot import HotMaker, fitting_touches
from p2pcloop.client.image_file import check_publishable
from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.profiles import read_profile
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.terminal import say
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop optimize @key/debian --name debian
  p2pcloop optimize debian.cloop --profile debian.profile --name debian
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=REF, metavar="REF|IMAGE")
@click.option("--name", "label", required=True, metavar="LABEL", help="What you call the image.")
@click.option(
    "--profile",
    "profile_file",
    type=FilePath(),
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
@publish_options
def command(
    ref: str,
    label: str,
    profile_file: Path | None,
    message: str,
    options: PublishOptions,
    *,
    as_new_version: bool,
) -> None:
    """Publish REF, or IMAGE (as of `seed`), with the blocks that a boot reads packed once more.

    The new version has the layers of its base, which its peers go on serving, and one small layer
    on top: the blocks of a boot's profile, in order of first touch, compressed hard. The content of
    the image does not change. An IMAGE is seeded first, as by `seed`.
    """
    home, public, as_json = options.home, options.public, options.as_json
    target = resolve_ref(ref, home)
    profile = None if profile_file is None else read_profile(profile_file)[1]
    with ExitStack() as stack:
        publisher = stack.enter_context(publisher_of(label, options))
        maker = HotMaker(publisher, as_json)
        if isinstance(target, ImageFile):
            check_publishable(target)
            profile = profile or maker.known_profile(target)
            target = maker.seed(target, public=public, as_new_version=as_new_version)
            publisher = replace(publisher, newest=target)
        else:
            stack.enter_context(target.client)
        publisher.check_secret(target.secret)
        touches = fitting_touches(target, profile, home, tell=profile_file is not None)
        made = maker.optimize(open_stored(target, home, stack), touches)
        answer = publisher.release(
            made.content, message=message, parent=made.parent, public=public, secret=target.secret
        )
    _report(answer | {"base": target.name} | made.facts(), home, as_json=as_json)


def _report(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    warn_if_only_here(answer, home)
    if as_json:
        click.echo(to_json(answer))
        return
    blocks = format_size(answer["stored_blocks"] * BLOCK_SIZE)
    packed = format_size(answer["stored"])
    where = (
        tr("in place of what was packed before") if answer["replaced"] else tr("on top of its base")
    )
    report_version(
        answer,
        tr(
            "{packed} packed, of {blocks} that a boot reads, {where}",
            packed=packed,
            blocks=blocks,
            where=where,
        ),
    )
    if not answer["profile"]:
        say("it is private, so its profile is not attached: `p2pcloop profile attach` does so")
    report_link(answer)
