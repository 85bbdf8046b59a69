"""`p2pcloop resume`: a guest that was suspended goes on."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from p2pcloop.cli.options import GUEST
from p2pcloop.cli.output import check_writable
from p2pcloop.client.guests import describe_guest
from p2pcloop.client.refs import read_ref, resolve_ref, typed_ref, words_of_the_user
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import log_to_stderr, notify, warn
from p2pcloop.errors import BusyError, NotHereError, P2pcloopError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.loading import loading
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.guests import Earlier, check_is_here, find_guest, is_guest_name
from p2pcloop.store.home import Home
from p2pcloop.store.trust import read_trusted
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.commands.boot import report_end
from p2pcloopd.commands.guest_command import check_ports
from p2pcloopd.commands.guest_options import ResumeOptions, resume_options
from p2pcloopd.forked import fork_daemon
from p2pcloopd.guest.network.forwarding import bound_ports

if TYPE_CHECKING:
    from p2pcloop.formats.machine_state import MachineState
    from p2pcloopd.guest.result import GuestResult
    from p2pcloopd.guest.with_block_server import ReadyGuest

_EPILOG = """
\b
Examples:
  p2pcloop resume g1                          # suspended here, as g1
  p2pcloop resume 'magnet:?xt=...' --net user --overlay mine.delta
  p2pcloop resume @key/desktop --trust @key --detach --name d1
"""


def _to_keys(
    _context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]
) -> frozenset[bytes]:
    with words_of_the_user():
        return frozenset(map(read_trusted, value))


@click.command(epilog=_EPILOG)
@click.argument("ref", type=GUEST, metavar="NAME|REF")
@click.option(
    "--replace",
    "forgets",
    is_flag=True,
    help="Forget a guest that had the name before and has ended, with its log.",
)
@click.option(
    "--detach", is_flag=True, help="Return once the guest runs; it goes on in the background."
)
@click.option(
    "--trust",
    "trusted",
    multiple=True,
    callback=_to_keys,
    metavar="@KEY",
    help="Resume a state of this key without a question, this time; `p2pcloop key trust` is for"
    " all times.",
)
@click.option("--record-all", is_flag=True, hidden=True)  # of a rehearsal with a command
@click.option("--wake-late", is_flag=True, hidden=True)  # of one without
@resume_options
def command(
    ref: str,
    options: ResumeOptions,
    trusted: frozenset[bytes],
    *,
    detach: bool,
    forgets: bool,
    record_all: bool,
    wake_late: bool,
) -> None:
    """Let a suspended guest go on: NAME, which was suspended here, or the state REF.

    A state is a machine that was suspended. It goes on with all that ran in it, in QEMU, in a
    sandbox, and without a network unless you give --net. A state of another user needs your trust:
    you are asked, or give --trust. What the guest writes is kept in a new overlay, or until its
    end; `suspend` it again to keep it as it is.

    Its clock is set, and its network card gets an address of this machine's; its connections are
    gone. If the state does not fit this machine, it says what differs before anything is fetched.
    For REF `-` the REF comes on standard input.
    """
    earlier: Earlier = "forget" if forgets else "moved"
    found = _Guest.find(typed_ref(ref), options, trusted, earlier)
    guest = replace(found, records_all=record_all, wakes_late=wake_late)
    if not detach:
        raise click.exceptions.Exit(guest.run(None))
    from p2pcloopd.commands.background import in_background  # noqa: PLC0415  not for all

    click.echo(in_background(guest.run))


@dataclass(frozen=True, slots=True)
class _Guest:
    """A guest that is to go on.

    Attributes:
        ref: as the user named it.
        target: its state.
        options: of the command; with the name and the overlay that it gets.
        earlier: what to do about a guest that had the name before.
        begun: seconds of the monotonic clock at the command's start.
        records_all: as of `hosting.Plan`.
        wakes_late: as `rehearses` of `Resuming`.
    """

    ref: str
    target: StoredRef
    options: ResumeOptions
    earlier: Earlier
    begun: float
    records_all: bool = False
    wakes_late: bool = False

    @classmethod
    def find(
        cls, ref: str, options: ResumeOptions, trusted: frozenset[bytes], earlier: Earlier
    ) -> _Guest:
        """Find the state, and see that it may and can go on here.

        Raises:
            UsageError: it is no state, or not trusted; or the overlay exists.
            MismatchError: this machine is another one.
            P2pcloopError: as for `resolve_ref`.
        """
        begun = time.monotonic()
        log_to_stderr(logging.WARNING, "p2pcloop: %(message)s", end="\r")
        if options.report is not None:
            check_writable(options.report, options.home)
        check_ports(options)
        options.net.check()
        home = options.home
        home.create()
        record = _suspended(ref, home)
        if record is not None and record.state is not None:
            options = _as_before(options, record)
            if options.name == record.name:
                earlier = "continue"
        if options.overlay is not None and options.overlay.exists():
            raise UsageError(
                tr(
                    "{overlay} exists, and the guest's memory is that of its disk as it was: it"
                    " cannot go on with another one",
                    overlay=printable(str(options.overlay)),
                ),
                hint="give another file; `p2pcloop boot` takes an overlay that exists",
            )
        state = ref if record is None else record.state
        target = _resolve(state or ref, options)
        _check(target, home, trusted)
        return cls(ref, target, options, earlier, begun)

    def run(self, started: Callable[[str], None] | None) -> int:
        """Run the guest to its end, and return the exit code.

        Args:
            started: called once it runs in the background, or None.
        """
        options = self.options.of_guest(_machine(self.target).memory.length)
        from p2pcloopd.commands.resuming import Resuming  # noqa: PLC0415  loaded meanwhile

        with bound_ports(options.ports) as ports:
            for port in options.ports:
                if port.is_open_to_others:
                    warn(
                        tr(
                            "p2pcloop: warning: other machines can reach the guest by {port}",
                            port=port,
                        )
                    )
            hosting = _hosting()
            plan = hosting.Plan(
                partial(self._start, started),
                prefetch=True,
                reachable=True,
                earlier=self.earlier,
                invocation=hosting.Invocation(self._words(), str(Path.cwd())),
                resuming=Resuming(
                    _machine(self.target),
                    options.name or "",
                    # A guest with a network is used by that: its console may not matter.
                    answers_first=started is None and options.net.kind == "none",
                    rehearses=self.wakes_late,
                ),
                records_all=self.records_all,
            )
            result: GuestResult = hosting.Hosting(
                str(self.target.name), self.target, options, plan, ports
            ).run(self.begun)
        if started is None and sys.stderr.isatty():
            report_end(result, str(self.target.name), self.options, self._words())
        return result.exit_code

    def _start(self, started: Callable[[str], None] | None, ready: ReadyGuest) -> None:
        from p2pcloopd.guest import with_block_server  # noqa: PLC0415  loaded meanwhile

        if started is None:
            with_block_server.report_keys(self.options.overlay)
        nowhere = None if started is None else Path(os.devnull)
        spec = replace(ready.spec, console=nowhere or "stdio", reboot=True)
        keep = self.options.name is not None or started is not None
        with_block_server.boot_reachable(replace(ready, spec=spec), started, keep=keep, quiet=False)

    def _words(self) -> tuple[str, ...]:
        """The words of `boot` by which `start` boots its disk once it has ended."""
        manifest, options = self.target.signed.manifest, self.options
        memory = _machine(self.target).memory.length
        words = [str(manifest.name), "--at", str(manifest.version), "--vm", "qemu"]
        words += ["--mem", str(memory), "--net", str(options.net)]
        for port in options.ports:
            words += ["--port", port.option]
        if options.overlay is not None:
            words += ["--overlay", str(options.overlay.absolute())]
        return tuple(words)


def _suspended(ref: str, home: Home) -> GuestRecord | None:
    """The record of the guest of this name, if it is one that is suspended.

    Raises:
        BusyError: it runs.
        UsageError: it was moved; or it has ended otherwise, and no image has that name.
    """
    if not is_guest_name(ref) or not (home.guests / ref).exists():
        return None
    guest = find_guest(home, ref)
    if guest.state == "running":
        raise BusyError(
            tr("the guest {ref} runs", ref=ref),
            hint=tr("`p2pcloop attach {ref}` leads to it", ref=ref),
        )
    check_is_here(guest.record)
    if guest.record.reason == "suspended":
        return guest.record
    try:
        with words_of_the_user():
            read_ref(ref, home)  # its state may have its name
    except NotHereError as err:
        raise UsageError(
            tr("the guest {ref} was not suspended", ref=ref), hint=describe_guest(guest)
        ) from err
    return None


def _as_before(options: ResumeOptions, record: GuestRecord) -> ResumeOptions:
    """The options of a guest that was suspended here: its name, and a new overlay beside the one
    that it had, whose changes are in the state."""
    name = options.name or record.name
    overlay = options.overlay
    if overlay is None and record.overlay is not None:
        overlay = _beside(Path(record.overlay))
        notify(
            tr(
                "p2pcloop: the guest keeps changes in {overlay} from now on",
                overlay=printable(str(overlay)),
            )
        )
    return replace(options, name=name, overlay=overlay, at=options.at or record.state_version or 0)


def _beside(path: Path) -> Path:
    """A free name like that of a file: mine.delta, mine-2.delta and so on."""
    stem = re.sub(r"-[0-9]{1,6}$", "", path.stem)
    numbers = itertools.count(2)
    return next(
        free
        for free in (path.with_name(f"{stem}-{number}{path.suffix}") for number in numbers)
        if not free.exists()
    )


def _resolve(ref: str, options: ResumeOptions) -> StoredRef:
    target = resolve_ref(
        ref,
        options.home,
        at=options.at,
        meanwhile=_load,
        start=fork_daemon,
        unpack=False,
        late=True,
    )
    if not isinstance(target, StoredRef):
        raise UsageError(tr("{ref} is a file: it is no state", ref=ref), hint="`p2pcloop boot` it")
    return target


def _check(target: StoredRef, home: Home, trusted: frozenset[bytes]) -> None:
    """Refuse a state that may not, or cannot, go on here."""
    from p2pcloop.client.trust import check_trust  # noqa: PLC0415  loaded while p2pcloopd starts
    from p2pcloopd.guest.machine.identity import check_host, this_host  # noqa: PLC0415  as above

    manifest = target.signed.manifest
    if manifest.machine is None:
        raise UsageError(
            tr(
                "{manifest} is an image, and no state: no guest was suspended there",
                manifest=manifest.name,
            ),
            hint="`p2pcloop boot` it",
        )
    target.check_secret()
    check_host(manifest.machine, this_host(manifest.machine.accelerator))
    check_trust(manifest.name, home, trusted)


def _machine(target: StoredRef) -> MachineState:
    machine = target.signed.manifest.machine
    assert machine is not None, "checked by `_check`"
    return machine


def _hosting() -> ModuleType:
    with loading():
        return importlib.import_module("p2pcloopd.commands.hosting")


def _load() -> None:
    """Load what runs guests, and look at this host, while p2pcloopd starts."""
    with loading():
        for name in ("hosting", "resuming"):
            importlib.import_module(f"p2pcloopd.commands.{name}")
        identity = importlib.import_module("p2pcloopd.guest.machine.identity")
    with suppress(P2pcloopError):  # else it is told later
        identity.this_host("tcg")
