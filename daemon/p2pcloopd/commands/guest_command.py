"""A command's guest, from its REF to its report.

This part loads in a moment: it has p2pcloopd started, and hosting.py, which needs trio and much
else, is loaded while p2pcloopd starts.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from p2pcloop.cli.output import check_writable
from p2pcloop.client.refs import resolve_ref, tell_state
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import log_to_stderr, notify, warn
from p2pcloop.errors import UsageError
from p2pcloop.loading import loading
from p2pcloop.words import tr
from p2pcloopd.commands.guest_options import GuestOptions, ResumeOptions
from p2pcloopd.forked import fork_daemon
from p2pcloopd.guest.network.forwarding import bound_ports
from p2pcloopd.guest.network.opened import check_opened

if TYPE_CHECKING:
    from p2pcloop.making.image_file import ImageFile
    from p2pcloopd.commands.hosting import Plan
    from p2pcloopd.guest.result import GuestResult


def run_guest_command(ref: str, options: GuestOptions, plan: Callable[[], Plan]) -> GuestResult:
    """Run a guest to its end; keep its first reads as a profile, and write the report.

    Args:
        ref: the image.
        options: of the command.
        plan: what the command does with its guest; called once hosting.py is loaded.

    Raises:
        P2pcloopError: there was no guest, or none to its end.
    """
    started = time.monotonic()
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s", end="\r")
    if options.report is not None:
        check_writable(options.report, options.home)
    check_ports(options)
    if options.firmware is not None and options.vm != "qemu":
        raise UsageError("--firmware is for guests in QEMU", hint="give `--vm qemu` with it")
    options.net.check()
    with bound_ports(options.ports) as ports:
        for port in options.ports:
            if port.is_open_to_others:
                warn(
                    tr("p2pcloop: warning: other machines can reach the guest by {port}", port=port)
                )
        options.home.create()
        target = resolve_ref(
            ref,
            options.home,
            at=options.at,
            meanwhile=lambda: _load().prepare(options),
            start=fork_daemon,
            late=True,
        )
        tell_state(target, tr("boots as after a power failure"))
        obey_cheatcodes(options.append, target)
        hosting = _load().Hosting(ref, target, options, plan(), ports)
        result: GuestResult = hosting.run(started)
        return result


def obey_cheatcodes(append: str, target: ImageFile | StoredRef) -> None:
    """Do before a boot what the user's cheatcodes ask for, and tell which of them do nothing.

    Raises:
        P2pcloopError: the image could not be fetched.
    """
    if not append:
        return
    from p2pcloopd.guest.system.cheatcodes import read_cheatcodes  # noqa: PLC0415  few boots

    cheatcodes = read_cheatcodes(append)
    for remark in cheatcodes.remarks:
        notify(tr("p2pcloop: {remark}", remark=remark))
    if cheatcodes.whole and isinstance(target, StoredRef):
        from p2pcloop.client.fetch import fetch_all  # noqa: PLC0415  as above

        fetch_all(target, quiet=False)


def check_ports(options: GuestOptions | ResumeOptions) -> None:
    """Refuse ports that lead nowhere.

    Raises:
        UsageError: as its message says.
        GuestError: there are too many.
    """
    if options.opened and options.net.kind != "user":
        raise UsageError(
            "--open needs a guest with the network `user`", hint="give `--net user` with it"
        )
    if options.opened:
        check_opened(options.opened)
    if options.ports and options.net.kind not in ("user", "lan"):
        raise UsageError(
            "--port needs a guest with the network `user` or `lan`",
            hint="give `--net user` with it",
        )
    if options.net.kind == "lan" and any(port.protocol == "udp" for port in options.ports):
        raise UsageError(
            "a port that leads into a LAN is one of TCP", hint="`--net user` takes /udp, too"
        )


def _load() -> ModuleType:
    """Load the modules that run guests: an eighth of a second, while p2pcloopd starts."""
    with loading():
        return importlib.import_module("p2pcloopd.commands.hosting")
