"""`p2pcloop seed`: serve an image to peers."""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack
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
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.image_file import check_publishable, open_image_file
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.refs import words_of_the_user
from p2pcloop.client.seed import seed_image
from p2pcloop.errors import UsageError
from p2pcloop.formats.containers import COMPRESSED
from p2pcloop.formats.filesystem import (
    ROOT_HINT,
    ROOT_TYPES,
    describe,
)
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import check_label, suggest_label
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size

_EPILOG = """
\b
Examples:
  p2pcloop seed KNOPPIX.iso
  p2pcloop seed KNOPPIX.cloop --name knoppix
  p2pcloop seed debian-12.qcow2 --name debian
  p2pcloop seed disk.img.xz --partition 2 --name my-disk --json
"""


@click.command(epilog=_EPILOG)
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--name", "label", metavar="LABEL", help="What you call the image; else its file's name."
)
@click.option(
    "--append", default="", metavar="ARGS", help="Words for the guest kernel's command line."
)
@new_version_option
@file_options
@key_option
@first_option
@public_option
@home_option
@json_option
def command(
    image: Path,
    label: str | None,
    append: str,
    key_name: str | None,
    home: Home,
    *,
    as_new_version: bool,
    first: bool,
    public: bool,
    as_json: bool,
) -> None:
    """Serve IMAGE to peers, under LABEL and your key; prints its name and a link to boot with.

    A .cloop is served where it lies: no second copy, no repacking; leave it there unchanged. So is
    a CD (.iso): what is booted is the live system on it (KNOPPIX, Debian, Ubuntu, Fedora, Arch,
    antiX), or else the CD itself. All else is packed (zstd) into the node's home: a raw image or a
    block device; of a disk the partition with the root; what is in a qcow2, VMDK, VDI, VHD or VHDX
    (read by qemu-img), or compressed by gzip, xz, zstd or bzip2. By default only this machine
    reaches the node (docs/daemon.md tells how to serve others).
    """
    with words_of_the_user():
        label = check_label(suggest_label(_stem(image)) if label is None else label)
    file = open_image_file(image, home, quiet=as_json)
    if file.kind == "overlay":
        raise UsageError(
            f"{image} is an overlay, not an image",
            hint="seed the image below it, and publish the overlay: `p2pcloop publish`",
        )
    check_publishable(file)
    with ExitStack() as stack:
        client = stack.enter_context(ensure_daemon(home))
        publisher = stack.enter_context(Publisher.of(home, client, label, key_name, first=first))
        answer = seed_image(
            file,
            publisher,
            append=append,
            public=public,
            quiet=as_json,
            as_new_version=as_new_version,
        )
    tell_seeded(answer, home, as_json=as_json)


def _stem(image: Path) -> str:
    """A file's name without what says how it is compressed, and without what says of what kind."""
    packed = {f".{each}" for each in COMPRESSED}
    return Path(image.stem).stem if image.suffix.lower() in packed else image.stem


def tell_seeded(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    """Tell what `seed_image` returned."""
    if answer["filesystem"] not in ROOT_TYPES:
        found = describe(answer["filesystem"])
        click.echo(f"a guest cannot boot it: it holds {found}; {ROOT_HINT}", err=True)
    warn_if_only_here(answer["link"], home)
    place = answer["in_place"]
    if as_json:
        click.echo(to_json(answer | {"in_place": place is not None}))
        return
    click.echo(f"serving {answer['name']}, version {answer['version']}")
    where = f", read from {place}: leave it there, unchanged" if place else ""
    click.echo(f"  {_to_size(answer)}{where}")
    if answer["images"]:
        outer = "disk" if answer["format"] == "disk" else "CD"
        names = ", ".join(filter(None, answer["images"])) or "all of it"
        click.echo(f"  from that {outer}: {names}")
    click.echo(f"boot it with:\n  p2pcloop boot '{answer['link']}'")


def _to_size(answer: dict[str, Any]) -> str:
    size = f"{format_size(answer['stored'])} for a device of {format_size(answer['size'])}"
    return f"{size}, {describe(answer['filesystem'])}"


def warn_if_only_here(link: str, home: Home) -> None:
    """Links say where a node is, before all others; with the default settings nobody reaches it."""
    if all(_is_loopback(host) for host, _ in parse_link(link).peers[:1]):
        click.echo(
            "only this machine reaches the node: to serve others, set `listen` in"
            f" {home.config} (docs/daemon.md), restart it and repeat this",
            err=True,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
