"""Serving a whole image file, in place or packed."""

from __future__ import annotations

from typing import Any

from p2pcloop.client.progress import progress_bar
from p2pcloop.client.publisher import Content, Publisher
from p2pcloop.client.same_file import (
    KeptVersion,
    check_same,
    holder_of,
    is_other_source,
    keep_newest,
)
from p2pcloop.client.terminal import notify
from p2pcloop.formats.boot_parameters import BootParameters
from p2pcloop.formats.filesystem import (
    PROBE_SIZE,
    detect_filesystem,
)
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import unchanged
from p2pcloop.making.pack import device_roots, device_size, odd_length, read_start, write_layer
from p2pcloop.store.sources import remember_source
from p2pcloop.words import tr


def seed_image(
    file: ImageFile,
    publisher: Publisher,
    *,
    append: str | None = None,
    message: str = "",
    public: bool = False,
    quiet: bool = False,
    as_new_version: bool = False,
    any_file: bool = False,
) -> dict[str, Any]:
    """Publish a whole image file, in place if that is possible, else packed; return facts.

    Where an older version was made of that content, the newest one is served again.

    Args:
        as_new_version: publish it all the same.
        any_file: it need not be the file of the versions before.

    Raises:
        UsageError: as of `seed_content` and `Publisher.release`.
    """
    content, facts, kept = seed_content(
        file,
        publisher,
        append=append,
        quiet=quiet,
        as_new_version=as_new_version,
        any_file=any_file,
    )
    if kept is None:
        answer = publisher.release(content, message=message, public=public)
    else:
        kept.tell(message)
        answer = publisher.serve_again(kept.ref, public=public)
    remember_source(publisher.home, publisher.name, file.source)
    return answer | facts


def seed_content(
    file: ImageFile,
    publisher: Publisher,
    *,
    append: str | None = None,
    quiet: bool = False,
    as_new_version: bool = False,
    any_file: bool = False,
) -> tuple[Content, dict[str, Any], KeptVersion | None]:
    """Serve the layer of a whole image file.

    Args:
        as_new_version: it need not be the file of the versions before, and may have their content.
        any_file: it need not be the file of the versions before.

    Returns:
        The content of its version, facts, and the newest version if that stays.

    Raises:
        UsageError: it is another file than that of the versions before, and holds another image;
            or as of `keep_newest`. Nothing was served then.
    """
    publisher.check_secret(None)
    other = not (as_new_version or any_file) and is_other_source(publisher, file.source)
    if other:
        check_same(publisher, device_size(file), None, file.source)  # before all of it is read
    for note in file.notes:
        notify(tr("{file}: {note}", file=file.name, note=note))
    with unchanged(file), publisher.home.staging() as staging:
        with progress_bar("reading", quiet=quiet) as progress:
            progress(0, device_size(file))
            header, note = write_layer(file, staging, progress)
        if note:
            notify(note)
        if other:
            check_same(publisher, header.image_size, header.layer_id, file.source)
        holder = None if as_new_version else holder_of(publisher, header.layer_id)
        kept = None if holder is None else keep_newest(publisher, holder, append=append)
        layer = publisher.serve_layer(staging, header)
        filesystem = detect_filesystem(read_start(file, PROBE_SIZE))
        boot = BootParameters(filesystem, append or "", device_roots(file))
        content = Content(header.image_size, (layer,), boot=boot, length=odd_length(file))
    facts = {
        "torrent": layer.torrent,
        "size": content.disk_length,
        "filesystem": boot.root_type,
        "stored": header.pack_length,
        "format": file.kind,
        "container": list(file.packed),
        "images": [part.name for part in file.inside],
        "in_place": str(file.path) if not note and file.can_stay else None,
    }
    return content, facts, kept
