"""`p2pcloop mirror`: write an image as static files, for any web server or a disk to carry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from p2pcloop.cli.options import at_option, home_option, json_option
from p2pcloop.cli.output import check_outside_store
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.fetch import fetch_all
from p2pcloop.client.invocation import running_command
from p2pcloop.client.refs import StoredRef, report_waiting, resolve_ref, words_of_the_user
from p2pcloop.client.terminal import progress_bar
from p2pcloop.errors import (
    CorruptError,
    P2pcloopError,
    UnreachableError,
    UsageError,
    storage_error,
)
from p2pcloop.formats.link import Link, parse_link, parse_mirror
from p2pcloop.formats.manifest import LayerRef, Manifest, ManifestRef, SignedManifest
from p2pcloop.formats.mirror import (
    ManifestPath,
    MetainfoPath,
    RecordPath,
    build_metainfo,
    extract_info,
    layer_parts,
)
from p2pcloop.formats.place import parse_place
from p2pcloop.formats.record import open_record
from p2pcloop.store.have import is_whole
from p2pcloop.store.home import Home
from p2pcloop.store.in_place import hold_served
from p2pcloop.store.lease import Lease
from p2pcloop.store.mirror import MirrorDirectory, open_mirror_directory, web_seed
from p2pcloop.store.records import Records
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_size

_MAX_HISTORY = 4096
"""Manifests of older versions that are written too, for `log` to tell."""

_EPILOG = """
\b
Examples:
  p2pcloop mirror @key/debian /srv/www/images --url https://example.org/images/
  p2pcloop mirror 'magnet:?xt=...' /media/stick/images
  p2pcloop boot https://example.org/images/@key/debian
  p2pcloop mirror --check https://example.org/images/
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", required=False)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--url", metavar="URL", help="Where DIRECTORY is served; prints a link that says so.")
@click.option(
    "--check",
    metavar="URL",
    help="Look at a mirror as its readers will; URL, or URL/@key/label. Writes nothing.",
)
@at_option
@home_option
@json_option
def command(
    ref: str | None,
    directory: Path | None,
    url: str | None,
    check: str | None,
    at: int,
    home: Home,
    *,
    as_json: bool,
) -> None:
    """Write REF into DIRECTORY as files that any web server can serve, and any disk can carry.

    All of the image is fetched and verified first. Several images, and several versions of one,
    may share a DIRECTORY; what is there already is not written again. Each file appears whole.

    With --check, tell what readers will meet at a mirror: signatures, ranges, wrong bytes. Exit
    code 12 where there is a fault.
    """
    if check is not None:
        if ref is not None or url is not None or at:
            raise UsageError("--check takes nothing but the URL of a mirror")
        _check(check, home, as_json=as_json)
        return
    if ref is None or directory is None:
        raise UsageError("what is to be written, and where? REF and DIRECTORY", hint="see --help")
    if url is not None:
        with words_of_the_user():
            url = parse_mirror(url if url.endswith("/") else f"{url}/")
    check_outside_store(directory, home)
    target = resolve_ref(ref, home, at=at, withdrawn=True, unpack=False)
    if not isinstance(target, StoredRef):
        raise UsageError(f"{ref} is a file", hint="seed it, and mirror it by its name")
    with (
        target.client,
        Lease(home, target.signed.id, running_command()),
        open_mirror_directory(directory) as mirror,
    ):
        link, written = _write(target, mirror, home, url, quiet=as_json)
    facts = {"name": target.name, "manifest": target.signed.id, "link": str(link)}
    if as_json:
        click.echo(to_json(facts | {"directory": str(directory), "written": written}))
        return
    click.echo(f"{target.name} is in {directory}; {format_size(written)} were written")
    if url is not None:
        click.echo(f"boot it with:\n  p2pcloop boot {url}{target.name}\n  p2pcloop boot '{link}'")


def _check(url: str, home: Home, *, as_json: bool) -> None:
    """Tell what p2pcloopd finds at a mirror.

    Raises:
        UnreachableError: there is a fault; all were told.
    """
    with words_of_the_user():
        if "@" in url:
            parse_place(url)
        else:
            parse_mirror(url if url.endswith("/") else f"{url}/")
    with ensure_daemon(home) as client:
        found = client.call("check_mirror", url=url)
    faults = sum(len(image["faults"]) for image in found["images"])
    if as_json:
        click.echo(to_json(found))
    else:
        for image in found["images"]:
            what = f"{image['name']}, version {image['version'] or 'unknown'}"
            click.echo(f"{what}: {printable('; '.join(image['faults'])) or 'all is well'}")
    if faults:
        raise UnreachableError(
            f"{found['base']}: {faults} fault{'' if faults == 1 else 's'}",
            hint="docs/publishing.md, Mirrors, says what a server must be able to do",
        )


def _write(
    ref: StoredRef, mirror: MirrorDirectory, home: Home, url: str | None, *, quiet: bool
) -> tuple[Link, int]:
    """Write the files of an image; return the link to it, and the bytes of layers written."""
    manifest = ref.signed.manifest
    known = Records(home).find(manifest.name)
    newest = known is not None and known.manifest_id == ref.signed.id
    record = open_record(known.record) if newest and known and known.record else None
    if record is not None:
        mirror.check(record)
    missing = [layer for layer in manifest.all_layers if not _is_there(layer, mirror)]
    if missing:
        _bring(ref, missing, quiet=quiet)
    for layer in missing:
        for path, _, size in layer_parts(layer, 0, layer.index_length + layer.pack_length):
            store = home.torrents / layer.torrent.hex()
            source = hold_served(store, f"{path.torrent_name}/{path.file}")
            # Eviction that had begun before the lease clears bits first, then makes holes.
            mirror.copy(path, source, size, partial(is_whole, store / "have"))
    # What an earlier run was told holds for this one.
    urls = mirror.urls(manifest.name) if url is None else (url,)
    for layer in manifest.all_layers:
        _write_metainfo(layer, mirror, home, urls)
    for manifest_id, signed in {each.id: each for each in _history(manifest, home)}.items():
        mirror.write(ManifestPath(manifest_id), signed.data)
    mirror.write(ManifestPath(ref.signed.id), ref.signed.data)
    link = parse_link(ref.link)
    link = replace(
        link,
        mirrors=tuple(dict.fromkeys([*urls, *link.mirrors])),
        web_seeds=tuple(dict.fromkeys([*map(web_seed, urls), *link.web_seeds])),
    ).fitted()
    if newest:
        mirror.write_link(link)
    if record is not None:
        mirror.write(RecordPath(manifest.name), record.data)
    else:
        click.echo(
            f"no signed record of this version of {ref.name} is known here: the mirror can be used"
            " by link only, not by name",
            err=True,
        )
    return link, sum(layer.index_length + layer.pack_length for layer in missing)


def _is_there(layer: LayerRef, mirror: MirrorDirectory) -> bool:
    whole = layer.index_length + layer.pack_length
    files = all(mirror.has(path, size) for path, _, size in layer_parts(layer, 0, whole))
    return files and (mirror.root / str(MetainfoPath(layer.torrent))).is_file()


def _bring(ref: StoredRef, layers: list[LayerRef], *, quiet: bool) -> None:
    """Have all of the image here, and compare the layers with their hashes: they are passed on.

    Raises:
        CorruptError: what was fetched anew is wrong again.
    """
    for _ in range(2):
        fetch_all(ref, quiet=quiet)
        if not sum(_verify(ref, layer, quiet=quiet) for layer in layers):
            return
    raise CorruptError(
        f"pieces of {ref.name} are wrong on this disk again after they were fetched",
        hint="check the disk",
    )


def _verify(ref: StoredRef, layer: LayerRef, *, quiet: bool) -> int:
    with progress_bar("verifying", quiet=quiet) as show:

        def on_event(event: str, fields: dict[str, int]) -> None:
            if event == "progress":
                show(fields["checked"], fields["pieces"])
            report_waiting(event, fields)

        return len(ref.client.call("verify", on_event, torrent=layer.torrent)["bad"])


def _write_metainfo(
    layer: LayerRef, mirror: MirrorDirectory, home: Home, urls: tuple[str, ...]
) -> None:
    """Write a layer's .torrent, which names the mirror's URLs as web seeds where any are known."""
    path = MetainfoPath(layer.torrent)
    there = mirror.root / str(path)
    if not urls and there.is_file():
        return
    source = there if there.is_file() else home.torrents / layer.torrent.hex() / "torrent"
    try:
        info = extract_info(source.read_bytes(), layer.torrent)
    except OSError as err:
        raise storage_error(f"cannot read {source}", err) from err
    mirror.write(path, build_metainfo(info, [web_seed(url) for url in urls]))


def _history(manifest: Manifest, home: Home) -> Iterator[SignedManifest]:
    """Older versions, and what each was made from, as far as they are known here; for `log`."""
    records = Records(home)
    seen: set[bytes] = set()
    while len(seen) < _MAX_HISTORY:
        parent = _find(records, manifest.parent)
        if parent is not None:
            yield parent
        before = _find(records, manifest.previous)
        if before is None or before.id in seen:
            return
        seen.add(before.id)
        yield before
        manifest = before.manifest


def _find(records: Records, ref: ManifestRef | None) -> SignedManifest | None:
    if ref is None:
        return None
    try:
        return records.manifest(ref.id)
    except P2pcloopError:
        return None  # not known here, which `log` tells as well
