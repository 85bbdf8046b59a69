"""Copies between this machine and a guest that another process runs."""

from __future__ import annotations

from functools import partial

from p2pcloop.store.guests import GuestFolder
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.channel.client import remote_command
from p2pcloopd.guest.channel.copying import LeaveOut, copy_in, copy_out


def from_guest(folder: GuestFolder, source: str, target: str, leave_out: LeaveOut) -> None:
    """Copy out of a guest; arguments and errors as for `copy_out` and `remote_command`."""

    async def copy() -> None:
        with plain_errors():
            await copy_out(partial(remote_command, folder, tools=True), source, target, leave_out)

    run(copy)


def to_guest(folder: GuestFolder, source: str, target: str, leave_out: LeaveOut) -> None:
    """Copy into a guest; arguments and errors as for `copy_in` and `remote_command`."""

    async def copy() -> None:
        with plain_errors():
            await copy_in(partial(remote_command, folder, tools=True), source, target, leave_out)

    run(copy)
