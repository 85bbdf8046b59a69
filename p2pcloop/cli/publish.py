"""`p2pcloop publish`: serve what was changed of an image as a new version."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import (
    file_options,
    first_option,
    home_option,
    json_option,
    key_option,
    public_option,
)
from p2pcloop.cli.seed import tell_seeded, warn_if_only_here
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.delta import Maker
from p2pcloop.client.files_overlay import joined_boot, open_files_target
from p2pcloop.client.image_file import check_publishable, open_image_file
from p2pcloop.client.publisher import Publisher, reference
from p2pcloop.client.refs import StoredRef, made_on, resolve_ref
from p2pcloop.client.seed import seed_image
from p2pcloop.client.stored import Opened, open_stored
from p2pcloop.errors import BusyError, UsageError
from p2pcloop.formats.boot import BootParameters
from p2pcloop.formats.filesystem import PROBE_SIZE, detect_filesystem
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.seal import new_secret
from p2pcloop.making.changes import Target
from p2pcloop.making.delta import Delta
from p2pcloop.making.local import ImageFile, unchanged
from p2pcloop.making.pack import device_roots, odd_length, open_target
from p2pcloop.making.targets import overlay_target
from p2pcloop.store.home import Home
from p2pcloop.store.sources import remember_source
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size

_EPILOG = """
\b
Examples:
  p2pcloop publish mine.delta --name my-knoppix -m 'Japanese input, my editor'
  p2pcloop publish new.cloop --name knoppix --base @key/knoppix
"""


@click.command(epilog=_EPILOG)
@click.argument("changed", type=click.Path(path_type=Path))
@click.option("--name", "label", required=True, metavar="LABEL", help="What you call the image.")
@click.option("--message", "-m", default="", metavar="TEXT", help="What changed, in one line.")
@click.option("--base", metavar="REF", help="The image that it was made from.")
@click.option(
    "--append", metavar="ARGS", help="Words for the guest kernel's command line, not the base's."
)
@click.option("--private", is_flag=True, help="Only who has the whole link can read it.")
@file_options
@key_option
@first_option
@public_option
@home_option
@json_option
def command(
    changed: Path,
    label: str,
    message: str,
    base: str | None,
    append: str | None,
    key_name: str | None,
    home: Home,
    *,
    first: bool,
    private: bool,
    public: bool,
    as_json: bool,
) -> None:
    """Serve CHANGED, an overlay or an image (as of `seed`), as what differs from its base.

    An overlay knows its base; of an image it is what --base names, else the newest version under
    LABEL, and where there is none, the whole image is served (as by `seed`). Prints the name and a
    link that others boot with.
    """
    file = open_image_file(changed, home, quiet=as_json)
    if file.kind == "overlay":
        _check_overlay(changed)
    check_publishable(file)
    with ExitStack() as stack:
        client = stack.enter_context(ensure_daemon(home))
        who = stack.enter_context(Publisher.of(home, client, label, key_name, first=first))
        found = _find_base(file, base, who, home)
        if found is not None and found is not who.image:
            stack.enter_context(found.client)
        request = _Request(file, found, append, message, private, public, as_json)
        answer = _publish(request, who, home, stack)
    _tell(answer, home, as_json=as_json)


def _check_overlay(path: Path) -> None:
    """Refuse an overlay that cannot be published, before anything is started for it."""
    info = Overlay.inspect(path)
    if info.in_use:
        raise BusyError(f"{path} is in use", hint="shut its guest down first")


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be published, and how; `base` is None for a whole image."""

    file: ImageFile
    base: StoredRef | None
    append: str | None
    message: str
    private: bool
    public: bool
    quiet: bool


def _find_base(file: ImageFile, base: str | None, who: Publisher, home: Home) -> StoredRef | None:
    if base is not None:
        found = resolve_ref(base, home, unpack=False)
        if not isinstance(found, StoredRef):
            raise UsageError(
                f"{base} is a file: others cannot have it from this node",
                hint="seed it first, and give its name",
            )
        return found
    if file.kind != "overlay":
        return who.image
    return made_on(file.path, home)


def _publish(request: _Request, who: Publisher, home: Home, stack: ExitStack) -> dict[str, Any]:
    file = request.file
    base = request.base
    secret = _choose_secret(request, who)
    who.check_secret(secret)
    if base is None and secret is None:
        answer = seed_image(
            file,
            who,
            home,
            append=request.append or "",
            message=request.message,
            public=request.public,
            quiet=request.quiet,
            as_new_version=True,
        )
        return answer | {"base": None}
    grown = base is not None and _stands_on(who.newest, base.signed.manifest)
    lower = who.newest if grown else base
    below = None if lower is None else open_stored(lower, home, stack)
    with unchanged(file):
        target = _open_target(file, base, below, home, stack)
        made = Maker(who, home, secret, request.quiet).over(below, target)
        boot = _boot(request, target, base)
        content = replace(made.content, boot=boot, length=_length(request, base))
    answer = who.release(
        content,
        message=request.message,
        parent=None if base is None else reference(base),
        public=request.public,
        secret=secret,
    )
    if file.kind != "overlay":
        remember_source(home, who.name, file.source)
    return answer | {
        "base": None if base is None else base.name,
        "filesystem": content.boot.root_type,
        "size": content.device_length,
        "layers": len(content.layers),
        "unknown_blocks": made.changes.unknown,
        **_facts(made.delta),
    }


def _choose_secret(request: _Request, who: Publisher) -> bytes | None:
    """That of the base, else of the version before; what was private stays so."""
    for ref in (request.base, who.newest):
        if ref is not None and ref.signed.manifest.private:
            ref.check_secret()
            if not request.private:
                click.echo(f"it is private, as {ref.name} is", err=True)
            return ref.secret
    return new_secret() if request.private else None


def _stands_on(newest: StoredRef | None, base: Manifest) -> bool:
    layers = () if newest is None else newest.signed.manifest.layers
    return layers[: len(base.layers)] == base.layers


def _open_target(
    file: ImageFile,
    base: StoredRef | None,
    below: Opened | None,
    home: Home,
    stack: ExitStack,
) -> Target:
    if file.kind != "overlay":
        return open_target(file, stack)
    assert base is not None and below is not None, "an overlay has a base"
    same = below.ref.signed.manifest.image_id == base.signed.manifest.image_id
    opened = below if same else open_stored(base, home, stack)
    if Overlay.inspect(file.path).mode == "files":
        other = None if same else below.image
        return open_files_target(file.path, opened, other, home, stack)
    overlay = Overlay.open(file.path, image_id=opened.image.image_id, read_only=True)
    stack.callback(overlay.close)
    return overlay_target(opened.image, overlay, opened.supply, None if same else below.image)


def _boot(request: _Request, target: Target, base: StoredRef | None) -> BootParameters:
    """The base's, but for what was given; the file system of an image is looked at anew."""
    boot = BootParameters() if base is None else base.signed.manifest.boot
    if request.append is not None:
        boot = replace(boot, append=request.append)
    if request.file.kind == "overlay":
        info = Overlay.inspect(request.file.path)
        if info.mode == "files" and base is not None:
            joined = joined_boot(base.signed.manifest, info.image_size)
            return replace(joined, append=boot.append)
        return boot
    start = target.read(0, min(PROBE_SIZE, target.size) // BLOCK_SIZE)
    return replace(boot, root_type=detect_filesystem(start), roots=device_roots(request.file))


def _length(request: _Request, base: StoredRef | None) -> int:
    """As `Content.length`: the base's, where its blocks are what was changed."""
    if request.file.kind != "overlay":
        return odd_length(request.file)
    if base is None or Overlay.inspect(request.file.path).mode == "files":
        return 0
    return base.signed.manifest.length


def _facts(delta: Delta | None) -> dict[str, Any]:
    if delta is None:
        return {"stored": 0}
    return {
        "stored": delta.pack_length,
        "index": len(delta.index),
        "stored_blocks": delta.stored_blocks,
        "repeated_blocks": delta.repeated_blocks,
        "referred_blocks": delta.referred_blocks,
        "zero_blocks": delta.zero_blocks,
    }


def _tell(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    if answer.get("unknown_blocks"):
        click.echo(
            f"{answer['unknown_blocks']} blocks count as changed: what they were in the base could"
            " not be had",
            err=True,
        )
    if "in_place" in answer:
        tell_seeded(answer, home, as_json=as_json)
        return
    warn_if_only_here(answer["link"], home)
    if as_json:
        click.echo(to_json(answer))
        return
    if not answer["changed"]:
        click.echo(f"nothing changed: it is {answer['name']}, version {answer['version']}, still")
    else:
        click.echo(f"serving {answer['name']}, version {answer['version']}")
        base = f", made from {answer['base']}" if answer["base"] else ""
        click.echo(f"  {format_size(answer['stored'])} packed{base}")
    click.echo(f"boot it with:\n  p2pcloop boot '{answer['link']}'")
