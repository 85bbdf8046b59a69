"""Copies of an overlay that lie on another image, and replacing the original by one.

The caller holds the original (`Overlay.open`) until it is replaced: no other process writes it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from p2pcloop.formats.overlay import read_header
from p2pcloop.formats.overlay_file import OverlayFile


def copy_overlay(
    path: Path,
    *,
    image_id: bytes,
    manifest_id: bytes | None,
    name: str,
    folder: Path | None = None,
) -> Path:
    """Copy an overlay to a hidden file, as an overlay of another image.

    Args:
        path: the original.
        image_id: of the other image, as for `Overlay.create`; so are the next two.
        manifest_id: of its manifest, or None.
        name: `@key/label`, or empty.
        folder: for the copy; else it lies beside the original, which it may replace then.

    Returns:
        The copy's path: the caller removes it, or has it replace the original.

    Raises:
        StorageError: no space, or a failing disk; no copy is left.
    """
    with closing(OverlayFile.open(path, read_only=True, locked=False)) as original:
        header = read_header(original)
        changed = replace(header, image_id=image_id, manifest_id=manifest_id, name=name)
        copy = OverlayFile.create_hidden(folder or path.parent)
        try:
            copy.reserve(header.file_size, allocated=header.data_offset)
            copy.copy_data(original)
            copy.write(0, [changed.pack()])
            copy.sync()
        except BaseException:
            copy.path.unlink()
            raise
        finally:
            copy.close()
    return copy.path


def replace_overlay(copy: Path, path: Path) -> None:
    """Replace the original by its copy, durably; a crash leaves one or the other.

    Raises:
        StorageError: the file system refused.
        BusyError: another process has the copy open.
    """
    with closing(OverlayFile.open(copy, read_only=False)) as file:
        file.replace(path)
