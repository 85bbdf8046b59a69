"""Shared by the commands that publish: the publisher, and the report of a new version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import PublishOptions
from p2pcloop.cli.reach import describe_only_here, is_only_here
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.terminal import notify, say, warn
from p2pcloop.formats.filesystem import (
    ROOT_HINT,
    ROOT_TYPES,
    describe,
)
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import format_key
from p2pcloop.store.home import Home
from p2pcloop.store.keys import our_keys
from p2pcloop.store.name_list import list_names
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr


@contextmanager
def publisher_of(label: str, options: PublishOptions) -> Iterator[Publisher]:
    """The publisher of an image, over a connection of its own; errors as of `Publisher.of`."""
    home = options.home
    with (
        ensure_daemon(home) as client,
        Publisher.of(home, client, label, options.key_name, first=options.first) as publisher,
    ):
        yield publisher


def report_version(answer: dict[str, Any], details: str) -> None:
    """Report a version that was published over another, or that nothing changed."""
    if not answer["changed"]:
        say(
            tr(
                "nothing changed: it is {name}, version {version}, still",
                name=answer["name"],
                version=answer["version"],
            )
        )
    else:
        say(tr("serving {name}, version {version}", name=answer["name"], version=answer["version"]))
        say(tr("  {details}", details=details))


def report_link(answer: dict[str, Any]) -> None:
    """Print the command that boots it."""
    say(tr("boot it with:\n  p2pcloop boot '{link}'", link=answer["link"]))


def report_seeded(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    """Report the facts that `seed_image` returned."""
    if answer["filesystem"] not in ROOT_TYPES:
        found = describe(answer["filesystem"])
        warn(
            tr(
                "a guest cannot boot it: it holds {found}; {root_hint}",
                found=found,
                root_hint=ROOT_HINT,
            )
        )
    warn_if_only_here(answer, home)
    place = answer["in_place"]
    if as_json:
        click.echo(to_json(answer | {"in_place": place is not None}))
        return
    say(tr("serving {name}, version {version}", name=answer["name"], version=answer["version"]))
    where = _where(Path(place), answer["torrent"], home) if place else ""
    say(tr("  {answer}{where}", answer=_to_size(answer), where=where))
    if answer["images"]:
        outer = tr("disk") if answer["format"] == "disk" else tr("CD")
        names = ", ".join(filter(None, answer["images"])) or tr("all of it")
        say(tr("  from that {outer}: {names}", outer=outer, names=names))
    report_link(answer)


def _where(place: Path, torrent: bytes, home: Home) -> str:
    """Where what was seeded is read from: a torrent that is here already stays where it is."""
    entries = (home.torrents / torrent.hex() / "data").rglob("*")
    used = [entry.readlink() for entry in entries if entry.is_symlink()]
    if place in used:
        return tr(", read from {place}: leave it there, unchanged", place=place)
    if not used:
        return tr(", read from the node's home, which has all of it")
    return tr(
        ", read from {used}, as before; {place} takes over once that is gone or changed",
        used=used[0],
        place=place,
    )


def _to_size(answer: dict[str, Any]) -> str:
    size = tr(
        "{stored} for a device of {size}",
        stored=format_size(answer["stored"]),
        size=format_size(answer["size"]),
    )
    return size + ", " + describe(answer["filesystem"])


def warn_if_only_here(answer: dict[str, Any], home: Home) -> None:
    """Warn if no other machine can reach the node.

    Once: with the first version of the first name that is published from this home. `p2pcloop
    status` tells it, too. The first peer in a link is the node itself.
    """
    peers = parse_link(answer["link"]).peers[:1]
    if answer["version"] != 1 or not is_only_here([host for host, _ in peers]):
        return
    ours = tuple(f"@{format_key(key)}/" for key in our_keys(home.keys))
    if sum(name.startswith(ours) for name in list_names(home.names)) == 1:
        notify(describe_only_here(home))
