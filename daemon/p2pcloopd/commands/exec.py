"""`p2pcloop exec`: a command in a guest that runs."""

from __future__ import annotations

import importlib
import os

import click

from p2pcloop.cli.options import RUNNING, home_option
from p2pcloop.client.guests import MAX_WAIT_SECONDS, WAIT_SECONDS, GuestProcess
from p2pcloop.errors import GuestError, UsageError
from p2pcloop.store.guests import GuestFolder
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.commands.behind_dashes import CommandBehindDashes

_EPILOG = """
\b
Examples:
  p2pcloop exec g1 -- systemctl is-system-running
  p2pcloop exec g1 -- sh -c 'ls /var/log | wc -l'
  p2pcloop exec -i g1 -- sh -s <setup.sh
  p2pcloop exec g1 -- tar -cf - -C /etc . | tar -x

The exit code is the command's: 127 if the guest has no such command, 128 plus the signal's number
if a signal ended it.

SIGINT, SIGTERM and SIGHUP are passed on to the command; at a second one it is left. A command that
is left, or whose `p2pcloop exec` was killed, gets SIGHUP in the guest, and SIGKILL after 5 seconds.
"""


@click.command(cls=CommandBehindDashes, epilog=_EPILOG)
@click.argument("name", type=RUNNING)
@click.argument(
    "command_words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED
)
@click.option("-i", "--interactive", is_flag=True, help="Give CMD this command's standard input.")
@click.option(
    "--wait",
    type=click.IntRange(0, MAX_WAIT_SECONDS),
    default=WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long a guest that boots is waited for.",
)
@click.option("-t", "--tty", is_flag=True, hidden=True)
@home_option
def command(
    name: str,
    command_words: tuple[str, ...],
    home: Home,
    *,
    interactive: bool,
    wait: int,
    tty: bool,
) -> None:
    """Run CMD as root in the guest NAME, which runs, and return its output and exit code.

    The command runs beside the image's init and services, without a terminal, in root's home. A
    guest that boots is waited for. A full-screen program needs `p2pcloop attach`.
    """
    if tty:  # `docker exec -it` and the like
        raise UsageError(
            "a command of `exec` has no terminal (-t)",
            hint=tr(
                "`p2pcloop attach {name}` gives the guest's console; leave out -t for a command"
                " that needs none",
                name=name,
            ),
        )
    words = [os.fsencode(word) for word in command_words]
    folder = running_guest(home, name)
    streams = importlib.import_module("p2pcloopd.guest.channel.streams")
    raise click.exceptions.Exit(streams.execute(folder, words, with_input=interactive, wait=wait))


def running_guest(home: Home, name: str) -> GuestFolder:
    """The directory of a guest that takes commands.

    Raises:
        NotHereError: there is no such guest.
        GuestError: it does not run, or it is a guest of `run`.
    """
    with GuestProcess(home, name):
        folder = GuestFolder(home, name)
        if not folder.socket_path.exists():
            raise GuestError(
                tr(
                    "the guest {name} takes no commands: it is one of `run`, or its home is on a"
                    " file system without sockets",
                    name=name,
                ),
                hint="only guests of `p2pcloop boot` do",
            )
        return folder
