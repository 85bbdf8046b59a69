"""`p2pcloop cp`: files and directories into a guest that runs, and out of it."""

from __future__ import annotations

import importlib
import re

import click

from p2pcloop.cli.options import home_option
from p2pcloop.client.terminal import notify
from p2pcloop.errors import UsageError
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloopd.commands.exec import running_guest

_EPILOG = """
\b
Examples:
  p2pcloop cp setup.sh g1:/root/
  p2pcloop cp g1:/etc/hostname .
  p2pcloop cp g1:/var/log logs        # the directory, as logs or logs/log
  p2pcloop cp site/. g1:/srv/www      # what is in the directory

NAME:PATH is a path in the guest NAME. What begins with `/` or `.` is a path of this machine. A
directory is copied with all that is in it. A target that is a directory gets the source as a part
of it; a target that does not exist becomes the copy. Permissions and symbolic links are kept; what
comes here belongs to you, what comes into the guest to its root.
"""

_REMOTE = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*):(?P<path>.*)", re.DOTALL)


@click.command(epilog=_EPILOG)
@click.argument("source")
@click.argument("target")
@home_option
def command(source: str, target: str, home: Home) -> None:
    """Copy the file or directory SOURCE to TARGET; one of them is in a guest."""
    inside, outside = _REMOTE.fullmatch(source), _REMOTE.fullmatch(target)
    if (inside is None) == (outside is None):
        many = "both are" if inside else "neither is"
        raise UsageError(
            f"one of {printable(source)} and {printable(target)} must be in a guest, and {many}",
            hint="a path in a guest is written NAME:PATH, one here that looks so ./NAME:PATH",
        )
    remote = inside or outside
    assert remote is not None
    path = "/" + remote["path"].lstrip("/")
    folder = running_guest(home, remote["name"])
    transfer = importlib.import_module("p2pcloopd.guest.channel.transfer")
    if inside is not None:
        transfer.from_guest(folder, path, target, _leave_out)
    else:
        transfer.to_guest(folder, source, path, _leave_out)


def _leave_out(what: str) -> None:
    notify(f"p2pcloop: left out {printable(what)}")
