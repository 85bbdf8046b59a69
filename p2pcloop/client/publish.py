"""Publishing the changes of an image: an overlay, or an image file compared with its base."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pcloop.client.delta import Maker, delta_facts
from p2pcloop.client.files_overlay import joined_boot, open_files_target
from p2pcloop.client.older_versions import OlderVersions
from p2pcloop.client.open_stored import Opened, open_stored
from p2pcloop.client.overlay_base import open_overlay_on
from p2pcloop.client.publisher import Publisher, choose_secret, reference
from p2pcloop.client.refs import made_on, resolve_stored
from p2pcloop.client.same_file import keep_newest
from p2pcloop.client.seed import seed_image
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import BusyError
from p2pcloop.formats.boot_parameters import BootParameters
from p2pcloop.formats.filesystem import PROBE_SIZE, detect_filesystem
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.frozen import dataclass
from p2pcloop.making.changes import Changes, Target
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import unchanged
from p2pcloop.making.pack import device_roots, odd_length, open_target
from p2pcloop.making.targets import overlay_target
from p2pcloop.store.home import Home
from p2pcloop.store.sources import remember_source
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr


def check_overlay(path: Path) -> None:
    """Refuse an overlay that cannot be published, before anything is started for it."""
    info = Overlay.inspect(path)
    if info.in_use:
        raise BusyError(tr("{path} is in use", path=path), hint="shut its guest down first")


@dataclass(frozen=True, slots=True)
class Request:
    """A file to publish, and how; `base` is None for a whole image."""

    file: ImageFile
    base: StoredRef | None
    append: str | None
    message: str
    private: bool
    public: bool
    quiet: bool
    as_new_version: bool


def find_base(file: ImageFile, base: str | None, publisher: Publisher) -> StoredRef | None:
    """The image that a file is compared with; None for a whole image.

    Args:
        base: the user's REF; None for the image that an overlay names, or the newest version.

    Raises:
        UsageError: the REF is a file.
        P2pcloopError: as for `resolve_ref` and `made_on`.
    """
    if base is not None:
        return resolve_stored(
            base,
            publisher.home,
            why_no_file=tr("others cannot have it from this node"),
            hint="seed it first, and give its name",
        )
    if file.kind != "overlay":
        return publisher.image
    return made_on(file.path, publisher.home)


def publish(request: Request, publisher: Publisher, stack: ExitStack) -> dict[str, Any]:
    """Publish a file as a delta over its base, or whole; return facts (docs/commands.md).

    Args:
        stack: closes the images and files that this opens.

    Raises:
        UsageError: see `Publisher.check_secret`, `Maker.over`, `keep_newest` and
            `Publisher.release`.
        P2pcloopError: the target cannot be read, or p2pcloopd could not serve the version.
    """
    file, home = request.file, publisher.home
    base = request.base
    secret = choose_secret(base, publisher, private=request.private)
    publisher.check_secret(secret)
    if base is None and secret is None:
        return _seed(request, publisher)
    image = publisher.image
    grown = base is not None and _goes_on(image, base.signed.manifest)
    lower = image if grown else base
    below = None if lower is None else open_stored(lower, home, stack)
    with unchanged(file):
        target = _open_target(file, base, below, home, stack)
        maker = Maker(publisher, secret, request.quiet)
        changes = maker.compare(below, target)
        if (holder := _holder(request, publisher, target, changes, below)) is not None:
            return _keep(request, publisher, holder)
        made = maker.over(below, target, changes=changes)
        boot = _boot(request, target, base)
        content = replace(made.content, boot=boot, length=_length(request, base))
    answer = publisher.release(
        content,
        message=request.message,
        parent=None if base is None else reference(base),
        public=request.public,
        secret=secret,
    )
    if file.kind != "overlay":
        remember_source(home, publisher.name, file.source)
    return answer | {
        "base": None if base is None else base.name,
        "filesystem": content.boot.root_type,
        "size": content.disk_length,
        "layers": len(content.layers),
        "unknown_blocks": made.changes.unknown,
        **delta_facts(made.delta),
    }


def _seed(request: Request, publisher: Publisher) -> dict[str, Any]:
    """Publish a file as a whole image, with the file as its layer."""
    answer = seed_image(
        request.file,
        publisher,
        append=request.append,
        message=request.message,
        public=request.public,
        quiet=request.quiet,
        as_new_version=request.as_new_version,
        any_file=True,
    )
    return answer | {"base": None}


def _holder(
    request: Request,
    publisher: Publisher,
    target: Target,
    changes: Changes,
    below: Opened | None,
) -> Manifest | None:
    """The older version that has exactly the content of an image file, unless the user wants it as
    the next version. (An overlay is published for its changes, whatever it was made on.)"""
    if request.as_new_version or request.file.kind == "overlay":
        return None
    base = None if below is None else below.ref.signed.manifest
    return OlderVersions(publisher, target, odd_length(request.file)).with_content(changes, base)


def _keep(request: Request, publisher: Publisher, holder: Manifest) -> dict[str, Any]:
    """Serve the newest version again, in place of a file with the content of an older one."""
    kept = keep_newest(publisher, holder, append=request.append, private=request.private)
    kept.tell(request.message)
    manifest = kept.ref.signed.manifest
    answer = publisher.serve_again(kept.ref, public=request.public)
    remember_source(publisher.home, publisher.name, request.file.source)
    return answer | {
        "base": None if request.base is None else request.base.name,
        "filesystem": manifest.boot.root_type,
        "size": manifest.disk_length,
        "layers": len(manifest.layers),
        "unknown_blocks": 0,
        **delta_facts(None),
    }


def _goes_on(newest: StoredRef | None, base: Manifest) -> bool:
    """Whether the newest version lies on the layers of a base, and is no state: the memory of a
    guest is of no use to the versions of an image."""
    if newest is None or newest.signed.manifest.machine is not None:
        return False
    return newest.signed.manifest.layers[: len(base.layers)] == base.layers


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
    overlay = open_overlay_on(
        file.path,
        home,
        image_id=opened.image.image_id,
        read_only=True,
        hint=tr("leave out --base: the overlay names its own"),
    )
    stack.callback(overlay.close)
    other = None if same else below.image
    size = base.signed.manifest.disk_size
    return overlay_target(opened.image, overlay, opened.supply, other, size)


def _boot(request: Request, target: Target, base: StoredRef | None) -> BootParameters:
    """The base's boot parameters, with the user's --append. An image file is probed anew."""
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


def _length(request: Request, base: StoredRef | None) -> int:
    """See `Content.length`. A block overlay has the length of its base."""
    if request.file.kind != "overlay":
        return odd_length(request.file)
    if base is None or Overlay.inspect(request.file.path).mode == "files":
        return 0
    length = base.signed.manifest.disk_length
    return length if length % BLOCK_SIZE else 0
