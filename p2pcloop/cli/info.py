"""`p2pcloop info`: what an image, a link or a file is."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from p2pcloop.cli.options import REF, at_option, file_options, home_option, json_option
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import say
from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.filesystem import (
    PROBE_SIZE,
    ROOT_TYPES,
    describe,
    detect_filesystem,
    overlay_mode,
)
from p2pcloop.formats.iso import read_iso
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.formats.overlay import Overlay, OverlayInfo
from p2pcloop.making.build import can_stay, check_image_size
from p2pcloop.making.image_file import ImageFile, Part
from p2pcloop.making.opened import OpenImage
from p2pcloop.making.pack import device_size, odd_length, read_start
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.text import printable, to_json
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop info KNOPPIX.iso
  p2pcloop info KNOPPIX.cloop
  p2pcloop info mine.delta
  p2pcloop info @key/debian --json
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=REF, metavar="REF|FILE")
@at_option
@file_options
@home_option
@json_option
def command(ref: str, at: int, home: Home, *, as_json: bool) -> None:
    """Tell what REF (a link, @key/label) or FILE (a cloop, a CD, a raw image, an overlay) is."""
    target = resolve_ref(ref, home, at=at)
    if isinstance(target, StoredRef):
        with target.client:
            facts = _stored_facts(target)
    else:
        facts = _file_facts(target, home)
    if as_json:
        click.echo(to_json(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        if value == []:
            continue
        say(
            tr(
                "{replace:{width}}  {key}",
                replace=key.replace("_", " "),
                width=width,
                key=_to_text(key, value),
            )
        )


def _file_facts(file: ImageFile, home: Home) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": str(file.name), "format": file.kind}
    if file.kind == "overlay":
        return facts | _overlay_facts(file, home)
    if file.kind == "profile":
        raise UsageError(
            tr("{file} is a profile", file=file.name),
            hint=tr("p2pcloop profile show {file}", file=file.name),
        )
    stored = file.size if file.given is None else file.given.stat().st_size
    facts |= {"container": list(file.packed), "stored": stored}
    if file.kind == "cloop":
        facts |= _cloop_facts(file)
    elif file.kind == "iso":
        facts |= iso_facts(file) | {"size": odd_length(file) or device_size(file)}
    else:
        if file.kind == "disk":
            facts["partition"] = file.inside[0].name
        facts["size"] = odd_length(file) or device_size(file)
    facts |= _root_facts(detect_filesystem(read_start(file, PROBE_SIZE)))
    facts["stored_share"] = stored / facts["size"]
    if file.doubt:
        facts["doubt"] = file.doubt
    return facts


def _root_facts(filesystem: str) -> dict[str, Any]:
    """The file system that a guest finds, and the mode in which `boot` keeps its changes."""
    mode = overlay_mode(filesystem) if filesystem in ROOT_TYPES else None
    return {"filesystem": filesystem, "overlay_mode": mode}


def _cloop_facts(file: ImageFile) -> dict[str, Any]:
    with open_cloop(file.path) as cloop:
        index = cloop.index
        return {
            "format": f"cloop {index.version}",
            "size": check_image_size(index.header.size),
            "header": "last" if index.header_last else "first",
            "block_size": index.header.block_size,
            "blocks": index.header.block_count,
            "codecs": {codec.name.lower(): count for codec, count in index.codecs().items()},
            "seeded_in_place": file.can_stay and can_stay(cloop),
        }


def _overlay_facts(file: ImageFile, home: Home) -> dict[str, Any]:
    info = Overlay.inspect(file.path)
    changed = info.data_blocks + info.zero_blocks
    return {
        "overlay_mode": info.mode,
        "made_on": info.name or tr("an image file"),
        "image_id": info.image_id,
        "manifest": info.manifest_id,
        "created": info.created,
        "size": _device_length(info, home),
        "changed": info.data_blocks * BLOCK_SIZE,
        "zeroed": info.zero_blocks * BLOCK_SIZE,
        "changed_share": changed * BLOCK_SIZE / info.image_size,
        "room_on_disk": info.allocated,
        "in_use": info.in_use,
    }


def _device_length(info: OverlayInfo, home: Home) -> int:
    """Exact bytes of the device that an overlay lies on or is; it counts whole blocks itself."""
    if info.mode == "block" and info.manifest_id is not None:
        with suppress(P2pcloopError):
            return Records(home).manifest(info.manifest_id).manifest.disk_length
    return info.image_size


def _stored_facts(ref: StoredRef) -> dict[str, Any]:
    manifest = ref.signed.manifest
    here = ref.here()
    return {
        "name": ref.name,
        "version": manifest.version,
        "created": manifest.created,
        "manifest": ref.signed.id,
        "image_id": manifest.image_id,
        "size": manifest.disk_length,
        "stored": ref.stored,
        "here": here,
        "here_share": here / ref.stored,
        "layers": len(manifest.layers),
        "private": manifest.private,
        **_root_facts(manifest.boot.root_type),
        "append": manifest.boot.append,
        **_state_facts(manifest.machine),
        "link": ref.link,
    }


def _state_facts(machine: MachineState | None) -> dict[str, Any]:
    """What a state has besides its disk, and what it takes to go on."""
    if machine is None:
        return {"state": False}
    return {
        "state": True,
        "suspended": machine.suspended,
        "memory": machine.memory_length,
        "device_state": machine.device_state_length,
        "machine": machine.type,
        "cpu": machine.cpu,
        "accelerator": machine.accelerator,
        "qemu": machine.qemu,
        "network": machine.network,
        "host_name": machine.host_name,
        "devices": list(machine.devices),
        "firmware": {role: digest.hex() for role, digest in machine.firmware},
    }


def _to_text(key: str, value: object) -> str:
    """A fact as text for people."""
    if isinstance(value, bytes):
        return value.hex()
    if key == "firmware" and isinstance(value, dict):
        return ", ".join(f"{role} {digest}" for role, digest in value.items())
    if key in ("created", "suspended") and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ")
    if key == "images" and isinstance(value, list):
        return "; ".join(map(image_text, value))
    if isinstance(value, list):
        return printable(", ".join(value))
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, bool) or value in (None, ""):
        return {True: "yes", False: "no"}.get(value, "-") if isinstance(value, bool) else "-"
    if isinstance(value, int) and key not in ("blocks", "layers", "version", "block_size"):
        size = format_size(value)
        return size if value < 1000 else tr("{size} ({what} bytes)", size=size, what=value)
    return printable(str(value))


def iso_facts(file: ImageFile) -> dict[str, Any]:
    """The facts of a CD image: the file systems on it, and those that are the image.

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
    """The facts of one image on a CD as text for people."""
    name = facts["name"] or tr("the CD itself")
    stored, size = format_size(facts["stored"]), format_size(facts["size"])
    return tr(
        "{name}: {format}, {stored} for {size}, {filesystem}",
        name=name,
        format=facts["format"],
        stored=stored,
        size=size,
        filesystem=describe(facts["filesystem"]),
    )
