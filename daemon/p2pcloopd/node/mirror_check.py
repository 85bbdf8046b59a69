"""Looking at a mirror as its readers will: what it names, what it has, and how it serves it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from p2pcloop.errors import FormatError, MismatchError, NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.link import MAX_LINK_LENGTH, parse_link, parse_mirror
from p2pcloop.formats.manifest import LayerRef, Manifest, ManifestRef, open_manifest
from p2pcloop.formats.name import Name
from p2pcloop.formats.place import parse_place
from p2pcloop.formats.record import open_record
from p2pcloop.units import format_size
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.engine.bt.session import Session
from p2pcloopd.engine.disk.metainfo import parse_info
from p2pcloopd.http.client import RangesIgnoredError
from p2pcloopd.http.mirrors import MAX_WHOLE, MirrorReader, UrlFiles
from p2pcloopd.node.arguments import fields_of
from p2pcloopd.node.manifests import check_manifest
from p2pcloopd.node.node import Node

Result = TypeVar("Result")

LINKS = "link.txt"
"""Where `p2pcloop mirror` writes a line for each image (store/mirror.py)."""

MAX_LINKS_SIZE = 1 << 20

MAX_IMAGES = 64
"""Images of one mirror that are looked at."""


async def check_mirror(node: Node, call: Call) -> dict[str, Any]:
    """Look at a mirror's images: at signatures, and at the first, a middle and the last piece of
    each layer, asked for as a reader does. Nothing is kept."""
    fields = fields_of(call)
    url = fields.text("url", MAX_LINK_LENGTH)
    fields.end()
    base, names = await _names_at(node, url)
    reader = MirrorReader(base, UrlFiles(node.http_client, base))
    images = [await _check_image(reader, *each) for each in names[:MAX_IMAGES]]
    return {"base": base, "images": images}


async def _names_at(node: Node, url: str) -> tuple[str, list[tuple[Name, ManifestRef | None]]]:
    """The base of a mirror, and what is to be found there: one name, or all of `link.txt`.

    Raises:
        NotHereError, UnreachableError, FormatError: the mirror does not tell.
    """
    if "@" in url:
        place = parse_place(url)
        return place.base, [(place.name, None)]
    base = parse_mirror(url if url.endswith("/") else f"{url}/")
    hint = tr("name an image: URL/@key/label")
    try:
        data = await node.http_client.get(base + LINKS, MAX_LINKS_SIZE)
    except NotHereError as err:
        raise NotHereError(
            tr("{err}, so it does not tell what it has", err=err), hint=hint
        ) from err
    try:
        links = [parse_link(line) for line in data.decode().splitlines() if line]
    except (FormatError, UsageError, UnicodeDecodeError) as err:
        raise FormatError(
            tr("{base}{links} holds something else than links", base=base, links=LINKS), hint=hint
        ) from err
    if not links:
        raise NotHereError(tr("{base}{links} names no image", base=base, links=LINKS), hint=hint)
    return base, [
        (link.name, ManifestRef(link.manifest_id, link.manifest_torrent)) for link in links
    ]


async def _check_image(
    reader: MirrorReader, name: Name, linked: ManifestRef | None
) -> dict[str, Any]:
    faults: list[str] = []
    manifest = await _check_signed(reader, name, linked, faults)
    size = 0
    for layer in () if manifest is None else manifest.all_layers:
        size += layer.index_length + layer.pack_length
        await _recording(faults, _check_layer(reader, layer))
    version = 0 if manifest is None else manifest.version
    return {"name": str(name), "version": version, "size": size, "faults": faults}


async def _check_signed(
    reader: MirrorReader, name: Name, linked: ManifestRef | None, faults: list[str]
) -> Manifest | None:
    """The manifest of a name: that of its record, or of the link where there is no record."""
    ref = await _recording(faults, _ref_of(reader, name)) or linked
    return None if ref is None else await _recording(faults, _manifest_of(reader, ref))


async def _ref_of(reader: MirrorReader, name: Name) -> ManifestRef:
    record = open_record(await reader.record(name)).record
    if record.name != name:
        raise MismatchError(
            tr(
                "{base}{name} is a record of {record}",
                base=reader.base,
                name=name,
                record=record.name,
            )
        )
    return ManifestRef(record.manifest_id, record.manifest_torrent)


async def _manifest_of(reader: MirrorReader, ref: ManifestRef) -> Manifest:
    return check_manifest(open_manifest(await reader.manifest(ref.id)), ref).manifest


async def _check_layer(reader: MirrorReader, layer: LayerRef) -> None:
    meta = parse_info(Session.decode(await reader.info(layer.torrent)))
    last = meta.layout.pieces - 1
    for piece in sorted({0, last // 2, last}):
        offset = piece * meta.layout.piece_length
        try:
            data = await reader.range(layer, offset, meta.layout.piece_size(piece))
        except RangesIgnoredError as err:
            raise FormatError(tr("{err}; {layer}", err=err, layer=_what_that_means(layer))) from err
        if not meta.matches(piece, data):
            raise MismatchError(
                tr(
                    "{base} has wrong bytes of torrent {torrent}, at {offset}",
                    base=reader.base,
                    torrent=layer.torrent.hex(),
                    offset=offset,
                )
            )


def _what_that_means(layer: LayerRef) -> str:
    size = layer.index_length + layer.pack_length
    if size > MAX_WHOLE:
        return tr(
            "readers cannot use it for a layer of {size}: whole files are taken up to {max_whole}",
            size=format_size(size),
            max_whole=format_size(MAX_WHOLE),
        )
    return tr(
        "readers must take all {size} before they are sure of a byte at the end",
        size=format_size(size),
    )


async def _recording(faults: list[str], work: Awaitable[Result]) -> Result | None:
    """What `work` returns; where it fails, its error is noted, once."""
    try:
        return await work
    except P2pcloopError as err:
        if str(err) not in faults:
            faults.append(str(err))
    return None
