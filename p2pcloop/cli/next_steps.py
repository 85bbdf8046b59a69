"""`p2pcloop` without a command: what is here, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator

import click

from p2pcloop.client.terminal import say
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.name import Name, format_key
from p2pcloop.store.guests import list_guests
from p2pcloop.store.home import Home
from p2pcloop.store.names import ShortNames
from p2pcloop.store.records import Records
from p2pcloop.text import printable
from p2pcloop.words import tr, tr_n, translated

Step = tuple[str, str]
"""What to type, and what it does."""

_FIRST: list[Step] = [
    ("p2pcloop boot 'magnet:?xt=…'", tr("boot an image by its link, while it arrives")),
    ("p2pcloop boot debian.cloop", tr("boot a file: a cloop, a CD, a disk of a virtual machine")),
    ("p2pcloop seed debian.cloop", tr("serve an image to others; prints its link")),
    ("p2pcloop doctor", tr("look whether this machine has what guests need")),
]


def print_next_steps(home: Home) -> None:
    """Write a few lines for a user who types the program's name alone; make nothing."""
    said, steps = _look(home)
    say(said)
    width = max(len(typed) for typed, _ in steps)
    for typed, does in steps:
        click.echo(f"  {typed.ljust(width)}   {translated(does)}")
    say("\nAll commands: p2pcloop --help. Of one command: p2pcloop COMMAND --help.")


def _look(home: Home) -> tuple[str, list[Step]]:
    try:
        names = [record.name for record in Records(home).names()]
        guests = sum(guest.state == "running" for guest in list_guests(home))
        shorts = {name: short for short, name in ShortNames(home).all().items()}
        runs = home.holder() is not None
    except P2pcloopError as err:
        # What is wrong is for the command that needs it; here it must not hide what to type.
        return tr(
            "{root} cannot be read: {err}",
            root=printable(str(home.root)),
            err=printable(err.message),
        ), _FIRST
    if not names and not guests:
        return tr("No image is known in {root} yet.", root=printable(str(home.root))), _FIRST
    known = tr_n("{count} image", "{count} images", len(names))
    running = tr_n("{count} guest", "{count} guests", guests) if guests else tr("no guests")
    said = (
        tr("{known} known, {running} running, p2pcloopd runs.", known=known, running=running)
        if runs
        else tr(
            "{known} known, {running} running, p2pcloopd does not run.",
            known=known,
            running=running,
        )
    )
    return said, list(_later(names, shorts, guests=guests, runs=runs))


def _later(
    names: list[Name], shorts: dict[Name, str], *, guests: int, runs: bool
) -> Iterator[Step]:
    if names:
        first = names[0]
        ref = shorts.get(first, f"@{format_key(first.key)[:8]}/{first.label}")
        yield "p2pcloop images", tr("list what is known here")
        yield (
            f"p2pcloop boot {ref} --overlay mine.delta",
            tr("boot one, and keep the changes"),
        )
        yield "p2pcloop publish mine.delta --name LABEL", tr("pass the changes on")
    if guests:
        yield "p2pcloop ps", tr("list the guests")
    if runs:
        yield "p2pcloop status", tr("show what the node fetches and serves")
        yield "p2pcloop web --open", tr("show it in a browser, with guests and their consoles")
    else:
        yield "p2pcloop daemon start", tr("serve your images to others")
