"""`p2pcloop seed`: serve an image to peers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from p2pcloop.cli.options import FilePath, PublishOptions, new_version_option, publish_options
from p2pcloop.cli.published import publisher_of, report_seeded
from p2pcloop.client.image_file import check_publishable, open_image_file
from p2pcloop.client.refs import words_of_the_user
from p2pcloop.client.seed import seed_image
from p2pcloop.errors import UsageError
from p2pcloop.formats.containers import COMPRESSED
from p2pcloop.formats.name import check_label, is_label, suggest_label
from p2pcloop.making.local import inspect_file
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop seed KNOPPIX.iso
  p2pcloop seed KNOPPIX.cloop --name knoppix
  p2pcloop seed debian-12.qcow2 --name debian
  p2pcloop seed disk.img.xz --partition 2 --name my-disk --json
  p2pcloop seed --raw debian-12.qcow2 --name vm     # the whole disk: boot it with --vm qemu
"""


@click.command(epilog=_EPILOG)
@click.argument("image", type=FilePath())
@click.option(
    "--name", "label", metavar="LABEL", help="What you call the image; else its file's name."
)
@click.option("--append", metavar="ARGS", help="Words for the guest kernel's command line.")
@new_version_option
@publish_options
def command(
    image: Path,
    label: str | None,
    append: str | None,
    options: PublishOptions,
    *,
    as_new_version: bool,
) -> None:
    """Serve IMAGE to peers, under LABEL and your key; prints its name and a link to boot with.

    A .cloop is served where it lies, without a second copy: leave it there unchanged. So is a CD
    (.iso): the live system on it is booted (KNOPPIX, Debian, Ubuntu, Fedora, Arch, antiX), or else
    the CD itself. All others are packed (zstd) into the node's home: a raw image or a block device;
    the root partition of a disk (with --raw the whole disk, with its boot loader); the content of a
    qcow2, VMDK, VDI, VHD or VHDX (read by qemu-img), or of a file compressed by gzip, xz, zstd or
    bzip2. By default only this machine reaches the
    node (docs/daemon.md says how to serve others).
    """
    if label is None:
        label = _label_of(image)
    with words_of_the_user():
        check_label(label)
    home = options.home
    file = open_image_file(image, home, quiet=options.as_json)
    if file.kind == "overlay":
        raise UsageError(
            tr("{image} is an overlay, not an image", image=image),
            hint="seed the image below it, and publish the overlay: `p2pcloop publish`",
        )
    check_publishable(file)
    with ExitStack() as stack:
        publisher = stack.enter_context(publisher_of(label, options))
        answer = seed_image(
            file,
            publisher,
            append=append,
            public=options.public,
            quiet=options.as_json,
            as_new_version=as_new_version,
        )
    report_seeded(answer, home, as_json=options.as_json)


def _label_of(image: Path) -> str:
    """A label made of a file's name.

    Raises:
        UsageError: there is none in it, or it is no file.
        NotHereError: there is no such file.
    """
    label = suggest_label(_stem(image))
    if not is_label(label):
        inspect_file(image, raw=True)
        raise UsageError(
            tr("no label can be made of the name of {image}", image=image),
            hint="give one: --name LABEL",
        )
    return label


def _stem(image: Path) -> str:
    """A file's name without the endings for its compression and its kind."""
    packed = {f".{each}" for each in COMPRESSED}
    return Path(image.stem).stem if image.suffix.lower() in packed else image.stem
