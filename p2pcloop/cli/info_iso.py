"""What `p2pcloop info` tells of a CD image."""

from __future__ import annotations

from typing import Any

from p2pcloop.formats.filesystem import PROBE_SIZE, describe, detect_filesystem
from p2pcloop.formats.iso import read_iso
from p2pcloop.making.local import ImageFile
from p2pcloop.making.opened import OpenImage
from p2pcloop.making.parts import Part
from p2pcloop.units import format_size


def iso_facts(file: ImageFile) -> dict[str, Any]:
    """Tell what is on a CD image, and which of it is the image.

    Raises:
        FormatError: it is damaged.
    """
    with file.path.open("rb") as opened:
        iso = read_iso(opened.fileno(), file.size)
    with OpenImage(file.path, file.parts, file.name) as image:
        return {
            "volume": iso.volume,
            "names": iso.names,
            "boots": iso.boots,
            "images": [_image_facts(file, part) for part in file.parts],
            "notes": list(file.notes),
            "seeded_in_place": file.can_stay and not image.why_not_in_place(),
        }


def _image_facts(file: ImageFile, part: Part) -> dict[str, Any]:
    with OpenImage(file.path, (part,), file.name) as image:
        filesystem = detect_filesystem(image.read(0, min(PROBE_SIZE, image.size)))
        return {
            "name": part.name,
            "format": image.formats[0],
            "stored": part.extents.size,
            "size": image.size,
            "filesystem": filesystem,
        }


def image_text(facts: dict[str, Any]) -> str:
    """Write the facts of one image on a CD for people."""
    name = facts["name"] or "the CD itself"
    stored, size = format_size(facts["stored"]), format_size(facts["size"])
    return f"{name}: {facts['format']}, {stored} for {size}, {describe(facts['filesystem'])}"
