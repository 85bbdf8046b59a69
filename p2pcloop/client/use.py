"""A command of the publisher that uses the guest of a rehearsal, as its readers will."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO

from p2pcloop.errors import GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

_SECONDS = 240.0
"""How long the command may take: a recording lasts 300 s at most."""


@dataclass(frozen=True, slots=True)
class Use:
    """What the publisher does with the guest of a rehearsal.

    Attributes:
        command: for the shell.
        network: the guest's, as `--net` takes it.
        ports: of this machine, which lead into the guest, as `--port` takes them.
    """

    command: str
    network: str
    ports: tuple[str, ...]

    def words(self) -> list[str]:
        """Of `p2pcloop resume`: the guest has its ports, and all that it touches is recorded."""
        ports = [word for port in self.ports for word in ("--port", port)]
        return ["--record-all", "--net", self.network, *ports]

    def run(self, guest: subprocess.Popen[bytes], end_of: Callable[[IO[bytes]], str]) -> bool:
        """Run the command to its end, or to that of the guest.

        Args:
            guest: the process that runs it.
            end_of: what of a program's output users are shown.

        Returns:
            Whether the guest runs still.

        Raises:
            GuestError: the command failed, or did not end in time.
        """
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                ["/bin/sh", "-c", self.command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # so that all of it can be ended
            )
            try:
                _wait_for_one(process, guest)
                code, runs = process.poll(), guest.poll() is None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if not runs or code == 0:
                return runs
            if code is None:
                raise GuestError(
                    tr(
                        "the command of --rehearse has not ended after {seconds} s: {said}",
                        seconds=f"{_SECONDS:g}",
                        said=end_of(said),
                    )
                )
            raise GuestError(
                tr(
                    "the command of --rehearse failed ({code}): {said}",
                    code=code,
                    said=end_of(said),
                )
            )


def _wait_for_one(*processes: subprocess.Popen[bytes]) -> None:
    """Return when one of them has ended, or the time for the command is over."""
    with ExitStack() as stack:
        ends = [os.pidfd_open(process.pid) for process in processes]
        for end in ends:
            stack.callback(os.close, end)
        select.select(ends, [], [], _SECONDS)
