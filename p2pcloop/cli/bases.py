"""The image that an overlay was made on."""

from __future__ import annotations

from pathlib import Path

from p2pcloop.cli.refs import StoredRef, resolve_ref
from p2pcloop.errors import NotHereError
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records


def made_on(overlay: Path, home: Home) -> StoredRef:
    """Return the image that an overlay names, which must be known here.

    Raises:
        NotHereError: it names none, or one that is not.
        FormatError: it is no overlay, or a damaged one.
    """
    info = Overlay.inspect(overlay)
    manifest = None if info.manifest_id is None else _known_manifest(info.manifest_id, home)
    if manifest is None:
        what = f"a version of {info.name} that is" if info.name else "an image that is"
        raise NotHereError(
            f"{overlay} was made on {what} not known here",
            hint="name it with --base: a link, or @key/label",
        )
    known = resolve_ref(str(manifest.name), home, at=manifest.version)
    assert isinstance(known, StoredRef)
    return known


def _known_manifest(manifest_id: bytes, home: Home) -> Manifest | None:
    try:
        return Records(home).manifest(manifest_id).manifest
    except NotHereError:
        return None
