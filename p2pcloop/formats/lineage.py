"""The order of versions: which manifest may precede another (docs/publishing.md)."""

from __future__ import annotations

from p2pcloop.errors import MismatchError
from p2pcloop.formats.manifest import Manifest
from p2pcloop.words import tr


def check_previous(manifest: Manifest, previous: Manifest) -> None:
    """Refuse what cannot be the version before: a walk back through versions must end.

    Raises:
        MismatchError: `previous` is of another name, or not older.
    """
    if previous.name != manifest.name or previous.version >= manifest.version:
        raise MismatchError(
            tr(
                "version {version} of {manifest} says that version {version2} of {previous}"
                " came before it",
                version=manifest.version,
                manifest=manifest.name,
                version2=previous.version,
                previous=previous.name,
            ),
            hint="its publisher made a mistake: what came before it cannot be told",
        )
