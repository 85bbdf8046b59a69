"""The guests that run in a home, as other commands act on them."""

from __future__ import annotations

import os
import select
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Self

from p2pcloop.errors import GuestError, UsageError
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.guests import GuestFolder, GuestState, find_guest, process_start
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr

SHUTDOWN_SECONDS = 60
"""A guest that has not shut down by then is ended by the process that runs it."""

WAIT_SECONDS, MAX_WAIT_SECONDS = 60, 3600
"""How long a command for a guest that boots waits for it, if nothing else is said, and at most."""

_END_SECONDS = 60
"""How long that process may take when its guest was ended: it makes all durable."""


_KILLED = 128 + signal.SIGKILL


class GuestProcess:
    """The process that runs a guest, held so that no signal reaches another process.

    Attributes:
        name: of the guest.
        record: its record when this was made.
    """

    def __init__(self, home: Home, name: str) -> None:
        """Find a running guest.

        Raises:
            NotHereError: there is no such guest.
            GuestError: it does not run.
        """
        self.name = name
        self._home = home
        self.record = self._running()
        try:
            self._fd = os.pidfd_open(self.record.pid)
        except ProcessLookupError as err:
            raise _does_not_run(self.record) from err
        # Its number may be another process's by now, or be of another namespace.
        if process_start(self.record.pid) != self.record.process_start:
            os.close(self._fd)
            raise _does_not_run(self.record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def stop(self, seconds: float) -> bool:
        """Shut the guest down in order; end it at once if that takes too long.

        Args:
            seconds: how long it may take to shut down, at most `SHUTDOWN_SECONDS`; 0 to end it at
                once.

        Returns:
            Whether it shut down in order.

        Raises:
            GuestError: it is still there.
        """
        self.signal(signal.SIGTERM)
        if seconds > 0 and self.wait(seconds):
            record = GuestFolder(self._home, self.name).read_record()
            return record is None or record.reason != "killed"
        self.kill()
        if not self.wait(_END_SECONDS):
            self.signal(signal.SIGKILL)
            if not self.wait(_END_SECONDS):
                raise GuestError(
                    tr(
                        "the guest {name} (process {pid}) does not end",
                        name=self.name,
                        pid=self.record.pid,
                    ),
                    hint="it may be stuck in the host's kernel: look at its disk",
                )
        return False

    def kill(self) -> None:
        """End the guest at once: by two signals, since of two equal ones one may be lost."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGINT)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the guest's end, at most so long; tell whether it has ended."""
        waiting = select.poll()
        waiting.register(self._fd, select.POLLIN)
        return bool(waiting.poll(None if seconds is None else seconds * 1000))

    def exit_code(self) -> int:
        """The exit code of a guest that has ended; 0 if nothing of it was kept."""
        record = GuestFolder(self._home, self.name).read_record()
        if record is None:
            return 0
        return _KILLED if record.exit_code is None else record.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal: SIGTERM shuts the guest down, another one ends it."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:  # it has just ended
            return

    def _running(self) -> GuestRecord:
        found = find_guest(self._home, self.name)
        if found.state != "running":
            raise _does_not_run(found.record)
        return found.record


def describe_guest(guest: GuestState) -> str:
    """What a guest is, and the command that leads to it, for a user who took it for an image."""
    record = guest.record
    name = record.name
    if guest.state == "running":
        return tr("{name} is a guest that runs: `p2pcloop attach {name}` leads to it", name=name)
    if record.reason == "suspended":
        return tr(
            "{name} is a guest that is suspended: `p2pcloop resume {name}` lets it go on", name=name
        )
    if record.reason == "moved":
        host = printable(str(record.host))
        return tr("{name} is a guest that was moved, and goes on at {host}", name=name, host=host)
    if record.words is None:
        return tr(
            "{name} is a guest that has ended: `p2pcloop logs {name}` shows what it printed",
            name=name,
        )
    return tr("{name} is a guest that has ended: `p2pcloop start {name}` boots it again", name=name)


def describe_display(folder: GuestFolder, display: Mapping[str, Any]) -> list[str]:
    """Lines that tell a user how to open a guest's display.

    Args:
        folder: the guest's.
        display: as in the guest's record.
    """
    address = printable(str(display.get("address")))
    if display.get("kind") == "window":
        return [tr("display: a window on {address}", address=address)]
    if link := display.get("link"):
        return [tr("display: open {link}", link=printable(str(link)))]
    file = printable(shlex.quote(str(folder.vnc_password_path)))
    password = printable(str(display.get("password")))
    return [
        tr("display: vncviewer -passwd {file} {address}", file=file, address=address),
        tr("display: its password, for other viewers: {password}", password=password),
    ]


def names_or_all(names: Sequence[str], every: Sequence[str] | None) -> list[str]:
    """The guests that a command is about: those that its user named, or all.

    Args:
        names: as named, maybe twice.
        every: all that can be meant, where the user said `--all`.

    Raises:
        UsageError: there are names as well as `--all`, or neither.
    """
    if (every is None) != bool(names):
        told = tr("give names of guests, or --all, not both") if names else tr("which guests?")
        raise UsageError(told, hint="`p2pcloop ps --all` lists them; --all means all of them")
    return list(dict.fromkeys(names if every is None else every))


def _does_not_run(record: GuestRecord) -> GuestError:
    name = record.name
    if record.reason == "suspended":
        return GuestError(
            tr("the guest {name} is suspended", name=name),
            hint=tr("`p2pcloop resume {name}` lets it go on", name=name),
        )
    if record.reason == "moved":
        host = printable(str(record.host))
        return GuestError(
            tr("the guest {name} does not run here", name=name),
            hint=tr("it was moved, and goes on at {host}", host=host),
        )
    return GuestError(
        tr("the guest {name} does not run", name=name),
        hint=tr("`p2pcloop logs {name}` shows what it printed", name=name),
    )
