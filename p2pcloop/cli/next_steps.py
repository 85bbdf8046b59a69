"""`p2pcloop` without a command: what is here, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from p2pcloop.client.terminal import say
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.name import Name, format_key
from p2pcloop.store.guests import list_guests
from p2pcloop.store.home import Home
from p2pcloop.store.names import ShortNames
from p2pcloop.store.records import Records
from p2pcloop.text import printable
from p2pcloop.words import tr

Step = tuple[str, str]
"""What to type, and what it does."""

_FIRST: list[Step] = [
    ("p2pcloop boot 'magnet:?xt=…'", "boot an image by its link, while it arrives"),
    ("p2pcloop boot debian.cloop", "boot a file: a cloop, a CD, a disk of a virtual machine"),
    ("p2pcloop seed debian.cloop", "serve an image to others; prints its link"),
    ("p2pcloop doctor", "look whether this machine has what guests need"),
]


def print_next_steps(home: Home) -> None:
    """Write a few lines for a user who types the program's name alone; make nothing."""
    said, steps = _look(home)
    say(said)
    width = max(len(typed) for typed, _ in steps)
    for typed, does in steps:
        say(tr("  {width}   {does}", width=typed.ljust(width), does=does))
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
            "{root} cannot be read: {err}", root=printable(str(home.root)), err=printable(str(err))
        ), _FIRST
    if not names and not guests:
        return tr("No image is known in {root} yet.", root=printable(str(home.root))), _FIRST
    known = tr(
        "{names_count} image{what}", names_count=len(names), what="" if len(names) == 1 else "s"
    )
    running = tr("{guests} guest{what}", guests=guests or tr("no"), what="" if guests == 1 else "s")
    said = tr(
        "{known} known, {running} running, p2pcloopd {what}.",
        known=known,
        running=running,
        what=tr("runs") if runs else tr("does not run"),
    )
    return said, list(_later(names, shorts, guests=guests, runs=runs))


def _later(
    names: list[Name], shorts: dict[Name, str], *, guests: int, runs: bool
) -> Iterator[Step]:
    if names:
        first = names[0]
        ref = shorts.get(first, f"@{format_key(first.key)[:8]}/{first.label}")
        yield tr("p2pcloop images"), tr("list what is known here")
        yield (
            tr("p2pcloop boot {ref} --overlay mine.delta", ref=ref),
            tr("boot one, and keep the changes"),
        )
        yield tr("p2pcloop publish mine.delta --name LABEL"), tr("pass the changes on")
    if guests:
        yield tr("p2pcloop ps"), tr("list the guests")
    if runs:
        yield tr("p2pcloop status"), tr("show what the node fetches and serves")
        yield tr("p2pcloop web --open"), tr("show it in a browser, with guests and their consoles")
    else:
        yield tr("p2pcloop daemon start"), tr("serve your images to others")
