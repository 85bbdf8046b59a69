"""The overlays that lie on images of this home: those images are not evicted.

`overlays/<first 32 hexadecimal digits of the SHA-256 of the path>` is canonical msgpack:
`{"format": 1, "path": bytes, "manifest": bytes}`. A block server writes it when it opens one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from p2pcloop.errors import FormatError, NotHereError, storage_error
from p2pcloop.formats.manifest import ID_SIZE
from p2pcloop.formats.named import read_file
from p2pcloop.formats.overlay_header import HEADER_SIZE, Header
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.store.home import Home, replace_file
from p2pcloop.words import tr

_FORMAT = 1
_MAX_PATH = 4096
_MAX_SIZE = _MAX_PATH + 256
_NAME_DIGITS = 32


def register_overlay(home: Home, overlay: Path, manifest_id: bytes) -> None:
    """Note that an overlay lies on the image of a manifest, durably.

    Raises:
        StorageError: the system refused.
    """
    path = os.fsencode(overlay.resolve())
    data = pack_canonical({"format": _FORMAT, "path": path, "manifest": manifest_id})
    note = home.overlays / hashlib.sha256(path).hexdigest()[:_NAME_DIGITS]
    with suppress(OSError):
        if read_file(note) == data:
            return
    replace_file(note, data)


def overlaid_manifests(home: Home) -> Iterator[tuple[Path, set[bytes]]]:
    """Each overlay that exists, with the ids of the manifests that it may lie on.

    Those are the manifest that it was last opened over and the one that it was made over. A file
    that cannot be read still counts as an overlay. The note of a deleted overlay is deleted, too,
    unless its whole folder is missing: that may be on a disk that is not attached.

    Raises:
        FormatError: a note is damaged.
        StorageError: the system refused.
    """
    try:
        notes = sorted(home.overlays.iterdir()) if home.overlays.is_dir() else []
        for note in notes:
            if len(note.name) != _NAME_DIGITS:
                continue  # a note that is being written
            path, manifest_id = _parse(read_file(note), note)
            try:
                yield path, {manifest_id} | _made_on(path)
            except NotHereError:
                if path.parent.is_dir():
                    note.unlink()
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=home.overlays), err) from err


def _parse(data: bytes, note: Path) -> tuple[Path, bytes]:
    try:
        fields = Fields(unpack_canonical(data, tr("an overlay's note"), _MAX_SIZE), "it")
        fields.integer("format", _FORMAT, _FORMAT)
        path = fields.blob("path", _MAX_PATH)
        manifest_id = fields.data("manifest", ID_SIZE)
        fields.end()
    except FormatError as err:
        hint = tr("delete it; its overlay is noted again when it is next used")
        raise FormatError(tr("{note} is damaged: {err}", note=note, err=err), hint=hint) from err
    return Path(os.fsdecode(path)), manifest_id


def _made_on(path: Path) -> set[bytes]:
    """The manifest that an overlay's header names, if it can be read and names one."""
    try:
        with open(path, "rb") as file:
            header = Header.unpack(file.read(HEADER_SIZE))
    except (FileNotFoundError, NotADirectoryError):
        raise NotHereError(tr("there is no overlay {path}", path=path)) from None
    except (OSError, FormatError):
        return set()
    return set() if header.manifest_id is None else {header.manifest_id}
