"""`p2pcloop cp`: files and directories into a guest or an overlay, and out of it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click

from p2pcloop.cli.options import home_option
from p2pcloop.cli.output import check_unserved
from p2pcloop.client.terminal import check_output_open, notify
from p2pcloop.errors import UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.commands.exec import running_guest

_EPILOG = """
\b
Examples:
  p2pcloop cp setup.sh g1:/root/
  p2pcloop cp g1:/etc/hostname .
  p2pcloop cp g1:/var/log logs        # the directory, as logs or logs/log
  p2pcloop cp site/. g1:/srv/www      # what is in the directory
  p2pcloop cp mine.delta:/root/note . # of an overlay that no guest uses
  p2pcloop cp g1:/var/log/syslog - | less
  ls | p2pcloop cp - g1:/root/list    # a file made of the standard input

NAME:PATH is a path in the guest NAME, FILE:PATH one in the overlay FILE on its image. What begins
with `/` or `.` names no guest. A directory is copied with all that is in it. A target that is a
directory gets the source as a part of it; a target that does not exist becomes the copy.
Permissions and symbolic links are kept; what comes here belongs to you, what comes into the guest
to its root.
"""

STANDARD_STREAM = "-"
_GUEST = re.compile(r"([a-z0-9][a-z0-9-]*):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Inside:
    """A path in a guest, or in an overlay.

    Attributes:
        where: the guest's name, or the overlay's file.
        path: begins with a slash.
    """

    where: str | Path
    path: str


def _inside(word: str) -> _Inside | None:
    """What a word says of a guest or an overlay; None for a path of this machine."""
    if guest := _GUEST.fullmatch(word):
        return _Inside(guest[1], "/" + guest[2].lstrip("/"))
    for colon in re.finditer(":", word):
        file = Path(word[: colon.start()])
        if file.is_file():
            return _Inside(file, "/" + word[colon.end() :].lstrip("/"))
    return None


@click.command(epilog=_EPILOG)
@click.argument("source")
@click.argument("target")
@click.option("--base", metavar="REF", help="The image of an overlay, where it names none.")
@home_option
def command(source: str, target: str, base: str | None, home: Home) -> None:
    """Copy the file or directory SOURCE to TARGET; one of them is in a guest or an overlay.

    The other one may be `-`, the standard input or output, of a file.
    """
    inside, outside = _inside(source), _inside(target)
    if target == STANDARD_STREAM:
        check_output_open()
    elif inside is not None:
        copy = Path(target)
        check_unserved(copy / Path(inside.path).name if copy.is_dir() else copy, home)
    place = inside or outside
    if place is None or (inside is not None and outside is not None):
        many = tr("neither is") if place is None else tr("both are")
        raise UsageError(
            tr(
                "one of {source} and {target} must be in a guest, and {many}",
                source=printable(source),
                target=printable(target),
                many=many,
            ),
            hint="a path in a guest is NAME:PATH, one in an overlay FILE:PATH (FILE exists), "
            "a file here whose name has a colon ./NAME",
        )
    if isinstance(place.where, Path):
        at_rest = importlib.import_module("p2pcloopd.guest.unseen.at_rest")
        home.create()
        rest = at_rest.resting(place.where, base, home)
        if inside is not None:
            at_rest.from_overlay(rest, place.path, target, _leave_out)
        else:
            at_rest.to_overlay(rest, source, place.path, _leave_out)
        return
    if base is not None:
        raise UsageError("--base is for overlays; a guest knows its image", hint="leave it out")
    folder = running_guest(home, place.where)
    transfer = importlib.import_module("p2pcloopd.guest.channel.transfer")
    if inside is not None:
        transfer.from_guest(folder, place.path, target, _leave_out)
    else:
        transfer.to_guest(folder, source, place.path, _leave_out)


def _leave_out(what: str) -> None:
    notify(tr("p2pcloop: left out {what}", what=printable(what)))
