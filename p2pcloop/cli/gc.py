"""`p2pcloop gc`: give back room on the disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import click

from p2pcloop.cli.options import SIZE, home_option, json_option
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.terminal import say
from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.store.eviction import describe_kept
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.store.usage import Keep
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop gc --dry-run
  p2pcloop gc --quota 5G
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--quota",
    type=SIZE,
    metavar="SIZE",
    help="What the images in the home may take.  [default: the setting quota]",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@home_option
@json_option
def command(quota: int | None, home: Home, *, dry_run: bool, as_json: bool) -> None:
    """Remove data that no known image needs; evict the images booted least recently, down to the
    quota.

    An evicted image is fetched again when it is booted. Never evicted are images that guests use,
    that lie below an overlay, that are pinned, or that were published from here, and files that are
    seeded where they lie. Exit code 11: these alone are over the quota.
    """
    with ensure_daemon(home) as client:
        done = client.call("gc", quota=-1 if quota is None else quota, dry_run=dry_run)
    kept = {Keep[reason.upper()]: size for reason, size in done["kept"].items()}
    if as_json:
        click.echo(to_json(_facts(done, dry_run=dry_run)))
    else:
        for line in _text(done, home, dry_run=dry_run):
            say(line)
    if done["quota"] is not None and done["left"] > done["quota"]:
        used, limit = format_size(done["left"]), format_size(done["quota"])
        error = StorageError(
            tr(
                "{used} cannot be reduced below the quota of {limit}: {kept}",
                used=used,
                limit=limit,
                kept=describe_kept(kept),
            ),
            errno=errno.EDQUOT,
            hint="`p2pcloop unpin`, end guests, delete overlays, or allow more: docs/storage.md",
        )
        error.facts_told = True
        raise error


def _facts(done: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
    evicted = [{"torrent": torrent, "pieces": pieces} for torrent, pieces in done["evicted"]]
    return done | {"evicted": evicted, "dry_run": dry_run}


def _text(done: dict[str, Any], home: Home, *, dry_run: bool) -> Iterator[str]:
    names = _names(home)
    verb = tr("would go") if dry_run else tr("gone")
    for torrent, pieces in done["evicted"]:
        if pieces:
            yield tr(
                "{verb}: {pieces} pieces of {torrent}",
                verb=verb,
                pieces=pieces,
                torrent=names.get(torrent, torrent.hex()),
            )
    for torrent in done["removed"]:
        yield tr("{verb}: torrent {torrent}, which nothing names", verb=verb, torrent=torrent.hex())
    freed = format_size(max(0, done["room"] - done["left"]))
    limit = (
        tr("no quota is set")
        if done["quota"] is None
        else tr("quota {quota}", quota=format_size(done["quota"]))
    )
    back = (
        tr("{freed} would be given back", freed=freed)
        if dry_run
        else tr("{freed} given back", freed=freed)
    )
    yield tr("{back}; {left} used, {limit}", back=back, left=format_size(done["left"]), limit=limit)


def _names(home: Home) -> dict[bytes, str]:
    """For each layer the name of an image: the first one that has it."""
    names: dict[bytes, str] = {}
    records = Records(home)
    for record in records.names():
        try:
            layers = records.manifest(record.manifest_id).manifest.all_layers
        except P2pcloopError:
            continue  # then only its name is missing
        for layer in layers:
            names.setdefault(layer.torrent, str(record.name))
    return names
