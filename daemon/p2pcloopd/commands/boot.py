"""`p2pcloop boot`: a guest at the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pcloop.cli.options import REF
from p2pcloop.cli.output import check_writable
from p2pcloop.client.terminal import notify
from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.text import printable
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import joined, tr
from p2pcloopd.commands.display_options import DisplayOptions, display_options
from p2pcloopd.commands.guest_command import run_guest_command
from p2pcloopd.commands.guest_options import GuestOptions, ResumeOptions, guest_options
from p2pcloopd.guest.console.escape import HELP
from p2pcloopd.guest.display.choice import bound_display

if TYPE_CHECKING:
    from p2pcloopd.commands.hosting import Plan
    from p2pcloopd.guest.display.choice import Listeners
    from p2pcloopd.guest.display.spec import Display
    from p2pcloopd.guest.result import GuestResult
    from p2pcloopd.guest.with_block_server import ReadyGuest

_EPILOG = f"""
\b
Examples:
  p2pcloop boot debian.cloop
  p2pcloop boot 'magnet:?xt=...' --overlay mine.delta
  p2pcloop boot @key/debian --overlay mine.delta --net user --mem 1G
  p2pcloop boot @key/web --net user --port 8080:80        # then: curl localhost:8080
  p2pcloop boot debian.cloop --net lan --name web         # other guests find it as web.lan
  p2pcloop boot @key/desktop --display window       # a screen, as a window of your desktop
  p2pcloop boot @key/desktop --display vnc          # a line says how to open it
  p2pcloop boot @key/xfce --display web --session startxfce4      # an image that has that command
  p2pcloop boot debian.cloop --detach --name g1    # then: attach, logs, ps, stop
  p2pcloop boot debian.cloop --vm qemu             # with a kernel as PCs have it
  p2pcloop boot @key/vm --vm qemu --overlay vm.delta   # a whole disk, by its own boot loader

\b
Every key goes to the guest, also Ctrl-C. The exception is Ctrl-], the escape:
{HELP}

Input is held until the guest shows a prompt. If the input is a pipe or a file, the guest is shut
down when the input has ended and the guest waits at its prompt. With --console FILE nothing is
read, and the guest runs until it ends or a signal arrives.

SIGINT, SIGTERM and SIGHUP shut the guest down in order; a second SIGINT or SIGTERM ends it at once.
A guest that still runs 60 seconds after the first signal is ended, too.
"""


EARLIER = "p2pcloop.earlier"
"""Key of a context's `meta`: what to do about a guest that had the name before."""

WORDS = "p2pcloop.words"
"""Key of a context's `meta`: the words behind `p2pcloop boot`."""

_ENDINGS = {
    "poweroff": tr("has shut down"),
    "reboot": tr("has shut down"),
    "killed": tr("was ended at once"),
}


class Boot(click.Command):
    """Keeps the words of the command line, with which `start` boots the guest again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)


def _to_earlier(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.meta[EARLIER] = "forget"


@click.command(cls=Boot, epilog=_EPILOG)
@click.argument("ref", type=REF)
@click.option(
    "--detach", is_flag=True, help="Return once the guest runs; it goes on in the background."
)
@click.option(
    "--replace",
    is_flag=True,
    expose_value=False,
    callback=_to_earlier,
    help="Forget a guest that had the name before and has ended, with its log.",
)
@guest_options
@display_options
@click.option(
    "--console",
    default="stdio",
    show_default=True,
    metavar="stdio|FILE",
    help="Where the guest's console is; a FILE only gets what the guest prints.",
)
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Show all that the guest prints; else a terminal gets one line of progress in place of"
    " what comes before the first prompt.",
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
    screen: DisplayOptions,
    console: str,
    *,
    detach: bool,
    verbose: bool,
    no_reboot: bool,
    autologin: bool,
    no_profile: bool,
) -> None:
    """Boot REF (a file, a link, or @key/label once known here) in User-Mode Linux, or in QEMU.

    The image arrives while the guest runs; only blocks that the guest reads cross the wire. The
    first reads are recorded as the image's profile; the next boot fetches them ahead.
    """
    screen.check()
    file = None if console == "stdio" else Path(console)
    if file is not None:
        check_writable(file, options.home)

    boot = _Boot(
        ref,
        options,
        screen,
        file=file,
        verbose=verbose,
        reboot=not no_reboot,
        autologin=autologin,
        profile=not no_profile,
    )
    if not detach:
        raise click.exceptions.Exit(boot.run(None))
    if file is not None:
        raise UsageError(
            "--detach keeps what the guest prints in its log: --console FILE says nothing",
            hint="leave it out; `p2pcloop logs NAME` shows the log",
        )
    from p2pcloopd.commands.background import in_background  # noqa: PLC0415  not for most boots

    click.echo(in_background(boot.run))


@dataclass(frozen=True, slots=True)
class _Boot:
    """What a user asks of a boot."""

    ref: str
    options: GuestOptions
    screen: DisplayOptions
    file: Path | None
    verbose: bool
    reboot: bool
    autologin: bool
    profile: bool

    def run(self, started: Callable[[str], None] | None) -> int:
        """Run the guest to its end, and return the exit code.

        Args:
            started: called once it runs in the background, or None.
        """
        with bound_display(self.screen.display) as shown_at:
            result = run_guest_command(
                self.ref, self.options, partial(self._plan, started, shown_at)
            )
        if started is None and sys.stderr.isatty():
            words = click.get_current_context().meta[WORDS]
            report_end(result, self.ref, self.options, words)
        return result.exit_code

    def _plan(self, started: Callable[[str], None] | None, shown_at: Listeners) -> Plan:
        # Loaded while p2pcloopd starts: see guest_command.py.
        from p2pcloopd.commands.hosting import Plan  # noqa: PLC0415
        from p2pcloopd.guest.system.initramfs import AUTOLOGIN  # noqa: PLC0415

        words = [*([AUTOLOGIN] if self.autologin else []), *self.screen.settings.words()]
        plan = Plan(
            partial(self._start, started),
            prefetch=self.profile,
            words=" ".join(words),
            reachable=True,
            display=_display(self.ref, self.screen, shown_at),
        )
        return _as_called(plan)

    def _start(self, started: Callable[[str], None] | None, ready: ReadyGuest) -> None:
        from p2pcloopd.guest import with_block_server  # noqa: PLC0415  as above

        if self.file is None and started is None:
            with_block_server.report_keys(self.options.overlay)
        nowhere = None if started is None else Path(os.devnull)
        spec = replace(ready.spec, console=nowhere or self.file or "stdio", reboot=self.reboot)
        if spec.display is not None:
            from p2pcloopd.commands import displaying  # noqa: PLC0415  not for most boots

            displaying.report_display(ready.own, spec.display)
            spec = replace(spec, session=displaying.make_session(self.screen))
        shown = sys.stdout.isatty() and sys.stderr.isatty() and not self.verbose
        with_block_server.boot_reachable(
            replace(ready, spec=spec),
            started,
            keep=self.options.name is not None or started is not None,
            quiet=shown and spec.console == "stdio",
        )


def _as_called(plan: Plan) -> Plan:
    """Add to a plan how this command was called."""
    from p2pcloopd.commands.hosting import Invocation  # noqa: PLC0415  as above

    meta = click.get_current_context().meta
    called = Invocation(meta[WORDS], _working_directory())
    return replace(plan, earlier=meta.get(EARLIER, "refuse"), invocation=called)


def _working_directory() -> str:
    """The working directory; "" where it was deleted."""
    try:
        return os.getcwd()  # noqa: PTH109  as the system names it
    except FileNotFoundError:
        return ""


def _display(ref: str, screen: DisplayOptions, shown_at: Listeners) -> Display | None:
    if screen.display.kind == "none":
        return None
    from p2pcloopd.commands.displaying import make_display  # noqa: PLC0415  not for most boots

    return make_display(ref, screen, shown_at)


def report_end(
    result: GuestResult, ref: str, options: GuestOptions | ResumeOptions, words: Sequence[str]
) -> None:
    """Tell a user at a terminal how the guest ended; the kernel's last messages stand above.

    Args:
        ref: the image, as the user named it.
        options: of the command that ran it.
        words: behind `p2pcloop boot`, by which such a guest is booted.
    """
    if result.reason == "suspended":
        assert result.state is not None
        name, version = result.state
        notify(
            tr(
                "\np2pcloop: the guest is suspended: {name}, version {version}, can be resumed",
                name=name,
                version=version,
            )
        )
        return
    how = _ENDINGS.get(
        result.reason,
        tr(
            "ended: {reason} (exit code {exit_code})",
            reason=result.reason,
            exit_code=result.exit_code,
        ),
    )
    notify(tr("\np2pcloop: the guest {how}; {ref}", how=how, ref=_changes(ref, options, words)))


def _changes(ref: str, options: GuestOptions | ResumeOptions, words: Sequence[str]) -> str:
    """What the guest has changed, and what can be done with it, for a user at a terminal."""
    overlay = options.overlay
    if overlay is None:
        return tr("its changes are gone (--overlay FILE keeps them)")
    from p2pcloop.formats.overlay import Overlay  # noqa: PLC0415  the block server has loaded it
    from p2pcloopd.commands.again import Again  # noqa: PLC0415  it loads what reads manifests

    try:
        info = Overlay.inspect(overlay)
    except P2pcloopError:  # it was deleted meanwhile
        return tr("{overlay} is gone", overlay=printable(str(overlay)))
    size = format_size(info.data_blocks * BLOCK_SIZE)
    again = Again.of(command, ref, options, words)
    publish, *more = again.publish(overlay, info)
    lines = [
        tr("{overlay} holds {size} of changes", overlay=printable(str(overlay)), size=size),
        tr("  boot it again: {command}", command=again.boot(overlay, info)),
        tr("  pass it on:    {command}", command=publish),
        *(f"                 {command}" for command in more),
    ]
    return joined("\n", lines)
