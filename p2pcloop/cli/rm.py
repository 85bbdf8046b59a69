"""`p2pcloop rm`: remove an image, or a guest that has ended, from this home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import IMAGE, home_option, json_option
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.guests import names_or_all
from p2pcloop.client.refs import read_ref, words_of_the_user
from p2pcloop.client.terminal import say
from p2pcloop.errors import NotHereError, UsageError
from p2pcloop.formats.link import is_link, parse_link
from p2pcloop.formats.name import Name
from p2pcloop.formats.place import parse_place
from p2pcloop.store.guests import GuestFolder, list_guests, remove_guests
from p2pcloop.store.home import Home
from p2pcloop.store.inventory import StoredVersion, list_versions
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_size
from p2pcloop.words import joined, tr

_EPILOG = """
\b
Examples:
  p2pcloop rm @key/debian
  p2pcloop rm @key/debian --at 3       # this version only
  p2pcloop rm my-debian --published    # what was published from here, too
  p2pcloop rm --guest g1 g2            # the logs and ends of guests, not their overlays
  p2pcloop rm --guest --all            # of all that have ended
"""


@click.command(epilog=_EPILOG)
@click.argument("refs", type=IMAGE, metavar="REF|NAME...", nargs=-1)
@click.option(
    "--guest",
    is_flag=True,
    help="Forget the guests NAME... of `ps --all`, which have ended.",
)
@click.option(
    "--all", "-a", "every", is_flag=True, help="With --guest: all guests that have ended."
)
@click.option("--at", type=click.IntRange(1), metavar="VERSION", help="This version only.")
@click.option(
    "--published",
    is_flag=True,
    help="Also what was published from here: others may have it from nowhere else.",
)
@home_option
@json_option
def command(
    refs: tuple[str, ...],
    at: int | None,
    home: Home,
    *,
    guest: bool,
    every: bool,
    published: bool,
    as_json: bool,
) -> None:
    """Remove the image REF from this home: its data, its profile, and its name.

    Layers that other images here need stay, and so do files that are served where they lie. An
    image is not removed while a guest reads from it, an overlay lies on it, or it is pinned. A name
    of your own stays known, so that the number of its next version follows; `p2pcloop unpublish`
    withdraws an image from others.
    """
    if guest:
        if at is not None or published:
            raise UsageError("--at and --published are of an image", hint="leave out --guest")
        _remove_guests(names_or_all(refs, _ended(home) if every else None), home, as_json=as_json)
        return
    name = _name_of(_only_image(refs, every=every), home)
    versions = _versions(home, name, at)
    with ensure_daemon(home) as client:
        done = client.call(
            "remove",
            name=str(name),
            manifests=[version.signed.id for version in versions],
            published=published,
        )
    facts = {
        "name": str(name),
        "versions": [version.signed.manifest.version for version in versions],
        "freed": done["freed"],
        "removed": done["removed"],
        "known": done["known"],
    }
    if as_json:
        click.echo(to_json(facts))
    else:
        say(_text(facts, _released(home, versions)))


def _only_image(refs: tuple[str, ...], *, every: bool) -> str:
    """The one image that is named."""
    if every:
        raise UsageError("--all is of guests", hint="`p2pcloop rm --guest --all`")
    if not refs:
        raise UsageError("which image?", hint="give REF; `p2pcloop images` lists them")
    if len(refs) > 1:
        raise UsageError("one image is removed at a time", hint="give one REF")
    return refs[0]


def _name_of(ref: str, home: Home) -> Name:
    """The full name of an image that the user typed."""
    with words_of_the_user():
        try:
            asked = read_ref(ref, home)
        except NotHereError as err:
            if ref in {each.record.name for each in list_guests(home)}:
                hint = tr("{ref} is a guest: `p2pcloop rm --guest {ref}` forgets it", ref=ref)
                raise NotHereError(err.message, hint=hint) from err
            raise
        if not isinstance(asked, str):
            raise UsageError(
                tr("{ref} is a file: delete it yourself", ref=ref), hint="give a name or a link"
            )
        return parse_link(asked).name if is_link(asked) else parse_place(asked).name


def _ended(home: Home) -> list[str]:
    return [each.record.name for each in list_guests(home) if each.state != "running"]


def _remove_guests(chosen: list[str], home: Home, *, as_json: bool) -> None:
    """Forget all of some guests; none if one cannot be."""
    remove_guests([GuestFolder(home, name) for name in chosen])
    if as_json:
        click.echo(to_json({"guests": chosen}))
    elif not chosen:
        say("no guest that has ended is kept here")
    else:
        for name in chosen:
            say(tr("the guest {name} is forgotten", name=name))


def _versions(home: Home, name: Name, at: int | None) -> list[StoredVersion]:
    found = [each for each in list_versions(home) if each.signed.manifest.name == name]
    if not found:
        raise NotHereError(
            tr("{name} is not here", name=name), hint="`p2pcloop images` lists what is"
        )
    chosen = [each for each in found if at in (None, each.signed.manifest.version)]
    if not chosen:
        raise NotHereError(
            tr("version {at} of {name} is not here", at=at, name=name),
            hint="see `p2pcloop images --all`",
        )
    return chosen


def _released(home: Home, removed: list[StoredVersion]) -> list[Path]:
    """The files that were served where they lie for these versions, and for no other."""
    kept = {path for version in list_versions(home) for path in version.in_place}
    return sorted({path for version in removed for path in version.in_place} - kept)


def _text(facts: dict[str, Any], files: list[Path]) -> str:
    word = tr("version") if len(facts["versions"]) == 1 else tr("versions")
    numbers = ", ".join(map(str, facts["versions"]))
    freed = format_size(facts["freed"])
    lines = [
        tr(
            "{name}, {word} {numbers}: removed, {freed} freed",
            name=facts["name"],
            word=word,
            numbers=numbers,
            freed=freed,
        )
    ]
    lines += [
        tr("  {path} is no longer served; the file stays", path=printable(str(path)))
        for path in files
    ]
    if facts["known"]:
        lines.append(
            tr("  the name stays known: `p2pcloop seed` gives a later version the next number")
        )
    return joined("\n", lines)
