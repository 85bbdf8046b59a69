"""`p2pcloop attach`: a running guest's console at this terminal."""

from __future__ import annotations

import importlib
import os

import click

from p2pcloop.cli.options import RUNNING, home_option
from p2pcloop.client.guests import GuestProcess
from p2pcloop.client.terminal import notify
from p2pcloop.errors import GuestError
from p2pcloop.store.guests import GuestFolder
from p2pcloop.store.home import Home
from p2pcloop.words import tr

_STDOUT = 1
_EPILOG = """
\b
Examples:
  p2pcloop attach g1
  echo 'apt-get -y upgrade && poweroff' | p2pcloop attach g1

\b
Every key goes to the guest, but for Ctrl-], the escape:
Ctrl-] d       leave the guest, which runs on
Ctrl-] s       shut the guest down in order; again: end it
Ctrl-] K       end it at once, as pulling the plug does
Ctrl-] i       type what is held back until the guest shows a prompt
Ctrl-] Ctrl-]  send Ctrl-] to the guest
Ctrl-] ?       list these keys

Several terminals may be attached to one guest. Its console has the size of the terminal that was
attached or resized last.
"""


@click.command(epilog=_EPILOG)
@click.argument("name", type=RUNNING)
@home_option
def command(name: str, home: Home) -> None:
    """Connect this terminal to the console of the guest NAME, which runs on when you leave it.

    Ends when the guest ends, with the exit code of its boot. Input is held until the guest shows a
    prompt, as that of `boot`; a pipe is typed line by line, one at each prompt, and when it has
    ended and the guest waits at its prompt, the guest is left.
    """
    with GuestProcess(home, name) as guest:
        folder = GuestFolder(home, name)
        if not folder.socket_path.exists():
            raise GuestError(
                tr(
                    "the guest {name} has no console to attach to: it is one of `run`, or its home"
                    " is on a file system without sockets",
                    name=name,
                ),
                hint=tr("`p2pcloop stop {name}` ends it", name=name),
            )
        attaching = importlib.import_module("p2pcloopd.guest.console.attaching")
        ended, number = attaching.attach(folder, guest)
        if ended:
            guest.wait()
            notify(tr("p2pcloop: the guest {name} has ended", name=name))
            raise click.exceptions.Exit(guest.exit_code())
        # The guest's prompt stands on this line.
        begin = "\n" if os.isatty(_STDOUT) else ""
        notify(tr("{begin}p2pcloop: left the guest {name}, which runs on", begin=begin, name=name))
        raise click.exceptions.Exit(128 + number if number else 0)
