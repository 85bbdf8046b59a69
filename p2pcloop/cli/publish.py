"""`p2pcloop publish`: serve what was changed of an image as a new version."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import REF, FilePath, PublishOptions, new_version_option, publish_options
from p2pcloop.cli.published import (
    publisher_of,
    report_link,
    report_seeded,
    report_version,
    warn_if_only_here,
)
from p2pcloop.client.image_file import check_publishable, open_image_file
from p2pcloop.client.publish import Request, check_overlay, find_base, publish
from p2pcloop.client.terminal import warn
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop publish mine.delta --name my-knoppix -m 'Japanese input, my editor'
  p2pcloop publish new.cloop --name knoppix --base @key/knoppix
"""


@click.command(epilog=_EPILOG)
@click.argument("changed", type=FilePath())
@click.option("--name", "label", required=True, metavar="LABEL", help="What you call the image.")
@click.option("--message", "-m", default="", metavar="TEXT", help="What changed, in one line.")
@click.option("--base", type=REF, metavar="REF", help="The image that it was made from.")
@click.option(
    "--append", metavar="ARGS", help="Words for the guest kernel's command line, not the base's."
)
@click.option("--private", is_flag=True, help="Only users with the whole link can read it.")
@new_version_option
@publish_options
def command(
    changed: Path,
    label: str,
    message: str,
    base: str | None,
    append: str | None,
    options: PublishOptions,
    *,
    private: bool,
    as_new_version: bool,
) -> None:
    """Serve the difference of CHANGED, an overlay or an image (as of `seed`), from its base.

    An overlay names its base. The base of an image is the one that --base names, else the newest
    version under LABEL, unless `rm --published` has removed that; without a base the whole image is
    served (as by `seed`). Prints the name and a link to boot with.
    """
    home, quiet = options.home, options.as_json
    file = open_image_file(changed, home, quiet=quiet)
    if file.kind == "overlay":
        check_overlay(changed)
    check_publishable(file)
    with ExitStack() as stack:
        publisher = stack.enter_context(publisher_of(label, options))
        found = find_base(file, base, publisher)
        if found is not None and found is not publisher.image:
            stack.enter_context(found.client)
        request = Request(
            file, found, append, message, private, options.public, quiet, as_new_version
        )
        answer = publish(request, publisher, stack)
    _report(answer, home, as_json=quiet)


def _report(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    if answer.get("unknown_blocks"):
        warn(
            tr(
                "{unknown_blocks} blocks count as changed: what they were in the base could not"
                " be had",
                unknown_blocks=answer["unknown_blocks"],
            )
        )
    if "in_place" in answer:
        report_seeded(answer, home, as_json=as_json)
        return
    warn_if_only_here(answer, home)
    if as_json:
        click.echo(to_json(answer))
        return
    base = tr(", made from {base}", base=answer["base"]) if answer["base"] else ""
    report_version(
        answer, tr("{stored} packed{base}", stored=format_size(answer["stored"]), base=base)
    )
    report_link(answer)
