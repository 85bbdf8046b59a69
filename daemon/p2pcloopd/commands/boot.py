"""`p2pcloop boot`: a guest at the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pcloop.cli.output import check_writable
from p2pcloopd.commands.guest_options import GuestOptions, guest_options
from p2pcloopd.commands.session import run_session
from p2pcloopd.guest.escape import HELP

if TYPE_CHECKING:
    from p2pcloopd.block.spec import BlockServerSpec
    from p2pcloopd.commands.hosting import Plan
    from p2pcloopd.guest.boot import LateNode
    from p2pcloopd.guest.report import Outcome
    from p2pcloopd.guest.spec import GuestSpec

_EPILOG = f"""
\b
Examples:
  p2pcloop boot debian.cloop
  p2pcloop boot 'magnet:?xt=...' --overlay mine.delta
  p2pcloop boot @key/debian --overlay mine.delta --net user --mem 1G
  p2pcloop boot @key/debian --net user --port 2222:22     # then: ssh -p 2222 root@localhost

\b
Every key goes to the guest, also Ctrl-C. The exception is Ctrl-], the escape:
{HELP}

Input is held until the guest shows a prompt. If the input is a pipe or a file, the guest is shut
down when the input has ended and the guest waits at its prompt. With --console FILE nothing is
read, and the guest runs until it ends or a signal arrives.

SIGINT, SIGTERM and SIGHUP shut the guest down in order; a second SIGINT or SIGTERM ends it at once.
A guest that still runs 60 seconds after the first signal is ended, too.
"""


@click.command(epilog=_EPILOG)
@click.argument("ref")
@guest_options
@click.option(
    "--console",
    default="stdio",
    show_default=True,
    metavar="stdio|FILE",
    help="Where the guest's console is; a FILE only gets what the guest prints.",
)
@click.option("--no-reboot", is_flag=True, help="End where the guest reboots.")
@click.option(
    "--autologin",
    is_flag=True,
    help="Log root in at the console, for this boot; the image is not changed.",
)
@click.option(
    "--no-profile", is_flag=True, help="Read nothing ahead of the guest, and record no profile."
)
def command(
    ref: str,
    options: GuestOptions,
    console: str,
    *,
    no_reboot: bool,
    autologin: bool,
    no_profile: bool,
) -> None:
    """Boot REF (a file, a link, or @key/label once known here) in User-Mode Linux.

    The image arrives while the guest runs; only blocks that the guest reads cross the wire. The
    first reads are recorded as the image's profile; the next boot fetches them ahead.
    """
    file = None if console == "stdio" else Path(console)
    if file is not None:
        check_writable(file)

    def plan() -> Plan:
        # Loaded while p2pcloopd starts: see session.py.
        from p2pcloopd.commands.hosting import Plan  # noqa: PLC0415
        from p2pcloopd.guest import boot as booting  # noqa: PLC0415
        from p2pcloopd.guest.initramfs import AUTOLOGIN  # noqa: PLC0415

        def start(
            spec: GuestSpec, disk: BlockServerSpec, outcome: Outcome, *, late_node: LateNode
        ) -> None:
            if file is None:
                booting.report_keys(options.overlay)
            spec = replace(spec, console=file or "stdio", reboot=not no_reboot)
            booting.boot(spec, disk, outcome, late_node=late_node)

        return Plan(start, prefetch=not no_profile, words=AUTOLOGIN if autologin else "")

    raise click.exceptions.Exit(run_session(ref, options, plan).exit_code)
