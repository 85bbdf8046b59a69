"""`p2pcloop run`: one command in a guest, as if it ran here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pcloop.cli.options import REF, FilePath
from p2pcloop.cli.output import check_writable
from p2pcloopd.commands.behind_dashes import CommandBehindDashes
from p2pcloopd.commands.guest_command import run_guest_command
from p2pcloopd.commands.guest_options import GuestOptions, guest_options

if TYPE_CHECKING:
    from p2pcloopd.commands.hosting import Plan
    from p2pcloopd.guest.with_block_server import ReadyGuest

_EPILOG = """
\b
Examples:
  p2pcloop run debian.cloop -- cat /etc/os-release
  p2pcloop run @key/debian --overlay mine.delta -- dpkg -i /root/hello.deb
  tar -c src | p2pcloop run debian.cloop -- tar -xC /tmp
  p2pcloop run debian.cloop --net user -- sh -c 'apt-get update && apt-get -s upgrade'

The exit code is the command's: 127 if the guest has no such command, 128 plus the signal's number
if a signal ended it. Standard input is read even if the command does not read it, as ssh does: in a
loop that reads, add </dev/null.

SIGINT, SIGTERM and SIGHUP are passed on to the command; a second one ends the guest at once. A
guest that still runs 60 seconds after the first one is ended, too. Without a signal there is no
limit.
"""


@click.command(cls=CommandBehindDashes, epilog=_EPILOG)
@click.argument("ref", type=REF)
@click.argument(
    "command_words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED
)
@guest_options
@click.option(
    "--console",
    type=FilePath(),
    default=os.devnull,
    metavar="FILE",
    help="Where to write what the guest's kernel says.  [default: nowhere]",
)
def command(ref: str, command_words: tuple[str, ...], options: GuestOptions, console: Path) -> None:
    """Run CMD as root in a guest of REF, without a terminal, and return its output and exit code.

    The command runs in place of the image's init, so any image will do, and no service is started.
    It finds /proc, /sys, /dev and an empty /run, and starts in root's home. Processes that it
    leaves behind end with it. Without --overlay its changes are lost.
    """
    check_writable(console, options.home)

    def plan() -> Plan:
        # Loaded while p2pcloopd starts: see guest_command.py.
        from p2pcloopd.commands.hosting import Plan  # noqa: PLC0415
        from p2pcloopd.guest.system.command_ending import command_ending  # noqa: PLC0415
        from p2pcloopd.guest.with_block_server import run_one  # noqa: PLC0415

        def start(ready: ReadyGuest) -> None:
            run_one(replace(ready, spec=replace(ready.spec, console=console)))

        return Plan(start, prefetch=False, ending=command_ending(command_words), words="quiet")

    raise click.exceptions.Exit(run_guest_command(ref, options, plan).exit_code)
