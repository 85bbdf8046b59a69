"""The guests that run in a home, as other commands act on them."""

from __future__ import annotations

import os
import select
import signal
from typing import Self

from p2pcloop.errors import GuestError
from p2pcloop.store.guests import GuestFolder, GuestRecord, find_guest
from p2pcloop.store.home import Home

_KILL_SECONDS = 10
"""How long a process may take to end after SIGKILL, or a guest's after it was ended at once."""


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
            raise _ended(name) from err
        try:
            self._running()  # its number is not another process's by now
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def stop(self, seconds: float) -> bool:
        """Shut the guest down in order; end it at once if that takes too long.

        Args:
            seconds: how long it may take to shut down; 0 to end it at once.

        Returns:
            Whether it shut down in order.

        Raises:
            GuestError: it is still there.
        """
        self.signal(signal.SIGTERM)
        if seconds > 0 and self.wait(seconds):
            return True
        self.signal(signal.SIGTERM)  # the second one ends it at once
        if not self.wait(_KILL_SECONDS):
            self.signal(signal.SIGKILL)
            if not self.wait(_KILL_SECONDS):
                raise GuestError(
                    f"the guest {self.name} (process {self.record.pid}) does not end",
                    hint="it may be stuck in the host's kernel: look at its disk",
                )
        return False

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the guest's end, at most so long; tell whether it has ended."""
        waiting = select.poll()
        waiting.register(self._fd, select.POLLIN)
        return bool(waiting.poll(None if seconds is None else seconds * 1000))

    def exit_code(self) -> int:
        """The exit code of a guest that has ended; 0 if nothing of it was kept."""
        record = GuestFolder(self._home, self.name).read_record()
        return 0 if record is None or record.exit_code is None else record.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal: SIGTERM shuts the guest down, a second one ends it."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:  # it has just ended
            return

    def _running(self) -> GuestRecord:
        found = find_guest(self._home, self.name)
        if found.state != "running":
            raise _ended(self.name)
        return found.record


def _ended(name: str) -> GuestError:
    return GuestError(
        f"the guest {name} does not run", hint=f"`p2pcloop logs {name}` shows what it printed"
    )
