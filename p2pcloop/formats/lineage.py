"""The order of versions: which manifest may precede another (docs/publishing.md)."""

from __future__ import annotations

from p2pcloop.errors import MismatchError
from p2pcloop.formats.manifest import Manifest


def check_previous(manifest: Manifest, previous: Manifest) -> None:
    """Refuse what cannot be the version before: a walk back through versions must end.

    Raises:
        MismatchError: `previous` is of another name, or not older.
    """
    if previous.name != manifest.name or previous.version >= manifest.version:
        raise MismatchError(
            f"version {manifest.version} of {manifest.name} says that version {previous.version} of"
            f" {previous.name} came before it",
            hint="its publisher made a mistake: what came before it cannot be told",
        )
