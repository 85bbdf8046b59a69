"""`p2pcloop seed`: serve an image to peers."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.control_client import ControlClient
from p2pcloop.cli.daemon_control import ensure_daemon
from p2pcloop.cli.options import home_option, json_option, to_json
from p2pcloop.cli.passphrase import ask_passphrase
from p2pcloop.cli.progress import progress_bar
from p2pcloop.cli.publishing import serve_version
from p2pcloop.cli.refs import words_of_the_user
from p2pcloop.errors import NotHereError, UsageError
from p2pcloop.formats.filesystem import (
    PROBE_SIZE,
    ROOT_HINT,
    ROOT_TYPES,
    describe,
    detect_filesystem,
)
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.manifest import (
    BootParameters,
    LayerRef,
    Manifest,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.name import Name, check_label
from p2pcloop.image.local import ImageFile, inspect_file
from p2pcloop.image.pack import read_start, write_layer
from p2pcloop.store.home import Home
from p2pcloop.store.keys import load_or_create_key
from p2pcloop.units import format_size

_EPILOG = """
\b
Examples:
  p2pcloop seed KNOPPIX.cloop --name knoppix
  p2pcloop seed disk.img --name my-disk --json
"""


@click.command(epilog=_EPILOG)
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--name", "label", required=True, metavar="LABEL", help="What you call the image.")
@click.option(
    "--append", default="", metavar="ARGS", help="Words for the guest kernel's command line."
)
@home_option
@json_option
def command(image: Path, label: str, append: str, home: Home, *, as_json: bool) -> None:
    """Serve IMAGE, a .cloop or a raw image, to peers, under LABEL and your key.

    A .cloop is served where it lies: no second copy, no repacking; leave it there unchanged. A raw
    image is packed (zstd) into the node's home. Prints the name and a link that others boot with;
    by default only this machine reaches the node (docs/daemon.md tells how to serve others).
    """
    with words_of_the_user():
        check_label(label)
    file = inspect_file(image)
    if file.kind == "overlay":
        raise UsageError(f"{image} is an overlay, not an image", hint="seed the image below it")
    with ensure_daemon(home) as client:
        answer = _seed(file, label, append, home, client, quiet=as_json)
    if answer["filesystem"] not in ROOT_TYPES:
        found = describe(answer["filesystem"])
        click.echo(f"a guest cannot boot it: it holds {found}; {ROOT_HINT}", err=True)
    _warn_if_only_here(answer["link"], home)
    if as_json:
        click.echo(to_json(answer))
        return
    click.echo(f"serving {answer['name']}, version {answer['version']}")
    where = f", read from {file.path}: leave it there, unchanged" if answer["in_place"] else ""
    click.echo(f"  {_to_size(answer)}{where}")
    click.echo(f"boot it with:\n  p2pcloop boot '{answer['link']}'")


def _to_size(answer: dict[str, Any]) -> str:
    size = f"{format_size(answer['stored'])} for a device of {format_size(answer['size'])}"
    return f"{size}, {describe(answer['filesystem'])}"


def _warn_if_only_here(link: str, home: Home) -> None:
    """Links say where a node is; with the default settings nobody else reaches it."""
    if all(_is_loopback(host) for host, _ in parse_link(link).peers):
        click.echo(
            "only this machine reaches the node: to serve others, set `listen` in"
            f" {home.config} (docs/daemon.md), restart it and seed again",
            err=True,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seed(
    file: ImageFile, label: str, append: str, home: Home, client: ControlClient, *, quiet: bool
) -> dict[str, Any]:
    key = load_or_create_key(home.keys, ask=ask_passphrase)
    name = Name(key.public_key().public_bytes_raw(), label)
    with home.staging() as staging:
        with progress_bar("reading", quiet=quiet) as progress:
            header, note = write_layer(file, staging, progress)
        if note:
            click.echo(note, err=True)
        seeded = client.call("seed", staging=str(staging))
    layer = LayerRef(
        layer_id=header.layer_id,
        torrent=seeded["torrent"],
        index_length=header.index_length,
        header_length=header.length,
        pack_length=header.pack_length,
        piece_length=seeded["piece_length"],
    )
    previous = _previous(client, name)
    manifest = Manifest(
        key=name.key,
        label=label,
        version=1 if previous is None else previous.manifest.version + 1,
        created=int(time.time()),
        size=header.image_size,
        layers=(layer,),
        boot=BootParameters(detect_filesystem(read_start(file, PROBE_SIZE)), append),
    )
    if previous is not None and _same(previous.manifest, manifest):
        signed = previous
    else:
        signed = open_manifest(sign_manifest(manifest, key))
    published = serve_version(client, signed, key)
    return {
        "name": published["name"],
        "link": published["link"],
        "manifest": published["id"],
        "version": signed.manifest.version,
        "image_id": manifest.image_id,
        "torrent": layer.torrent,
        "size": manifest.size,
        "filesystem": manifest.boot.root_type,
        "stored": header.pack_length,
        "in_place": not note and file.kind == "cloop",
    }


def _previous(client: ControlClient, name: Name) -> SignedManifest | None:
    try:
        return open_manifest(client.call("resolve", ref=str(name))["manifest"])
    except NotHereError:
        return None


def _same(old: Manifest, new: Manifest) -> bool:
    return (old.image_id, old.layers, old.boot) == (new.image_id, new.layers, new.boot)
