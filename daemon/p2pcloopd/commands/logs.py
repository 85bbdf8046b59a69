"""`p2pcloop logs`: what a guest has printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

import click

from p2pcloop.cli.options import GUEST, home_option
from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.guests import GuestProcess
from p2pcloop.client.progress import without_waits
from p2pcloop.errors import DaemonError, GuestError, NotHereError
from p2pcloop.store.guests import GuestFolder, find_guest
from p2pcloop.store.home import Home
from p2pcloopd.guest.console.screen_filter import ScreenFilter, takes_utf8

_STDOUT = 1
_EPILOG = """
\b
Examples:
  p2pcloop logs g1
  p2pcloop logs g1 --follow         # until the guest ends, or Ctrl-C
  p2pcloop logs g1 -n 20            # the last 20 lines
"""


@click.command(epilog=_EPILOG)
@click.argument("name", type=GUEST)
@click.option("--follow", "-f", is_flag=True, help="Go on with what it prints, until it ends.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0),
    metavar="N",
    help="Of what it has printed so far, show the last N lines.  [default: all]",
)
@home_option
def command(name: str, home: Home, lines: int | None, *, follow: bool) -> None:
    """Show what the guest NAME has printed at its console, and what p2pcloop said of it.

    The last 4 MiB are kept, and as much before them. On a terminal only what draws is shown.
    """
    screen = ScreenFilter(utf8=takes_utf8()) if os.isatty(_STDOUT) else None
    try:
        _show(home, name, _writer(screen), lines, follow=follow)
    finally:
        if screen is not None:  # no colours of the guest's stay
            sys.stdout.buffer.write(screen.undo())
            sys.stdout.buffer.flush()


def _show(
    home: Home, name: str, write: Callable[[bytes], None], lines: int | None, *, follow: bool
) -> None:
    guest = find_guest(home, name)
    folder = GuestFolder(home, name)
    shown = folder.read_log(lambda data: write(last_lines(data, lines)))
    if follow and guest.state == "running":
        with suppress(GuestError, NotHereError), GuestProcess(home, name) as process:
            shown = _follow(folder, write, shown)
            process.wait()
        folder.read_log(write, shown)


def last_lines(data: bytes, lines: int | None) -> bytes:
    """The last `lines` lines of what a guest has printed, or all of it. The last one may be
    unfinished, as a prompt is."""
    if lines is None:
        return data
    begin = len(data)
    for _ in range(lines):
        if begin == 0:
            break
        begin = data.rfind(b"\n", 0, begin - 1) + 1
    return data[begin:]


def _writer(screen: ScreenFilter | None) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data if screen is None else screen.feed(data))
        sys.stdout.buffer.flush()

    return write


def _follow(folder: GuestFolder, write: Callable[[bytes], object], shown: int) -> int:
    """Write what comes into the log behind `shown`, until the guest ends; return how far it is."""
    with (
        suppress(DaemonError),
        without_waits(),  # the guest may have printed half a line, a prompt say
        ControlClient.connect_to(folder.socket_path) as guest,
    ):
        position = guest.call("console_position")["position"]
        while True:
            # The log has p2pcloop's messages, too; the guest's socket tells that it grew.
            shown = folder.read_log(write, shown)
            answer = guest.call("console_output", after=position)
            position = answer["position"] + len(answer["data"])
    return shown
