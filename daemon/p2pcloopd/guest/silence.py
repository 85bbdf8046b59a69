"""Tells the user what a guest that prints nothing waits for, or which program it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from p2pcloop.frozen import dataclass
from p2pcloop.store.guests import Waiting
from p2pcloop.words import tr
from p2pcloopd.guest.transcript import Transcript

SILENT_SECONDS = 20.0
"""The user is told after so long without output."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A guest that has printed nothing for `SILENT_SECONDS`.

    Attributes:
        said: what the user is to be told, without its subject, the guest.
        waits: whether it is known to wait for data, and so goes on by itself.
    """

    said: str
    waits: bool


class Silence:
    """Waits until a guest prints nothing for `SILENT_SECONDS`."""

    def __init__(
        self,
        transcript: Transcript,
        waiting: Callable[[], Waiting | None] = lambda: None,
        *,
        by_firmware: bool = False,
        resumed: bool = False,
    ) -> None:
        """Follow a guest's output.

        Args:
            waiting: tells what its reads wait for.
            by_firmware: the disk's own boot loader boots it, so its init is not known.
            resumed: it goes on where it was suspended, so nothing of its boot is known: only its
                waits for data are told.
        """
        self._transcript = transcript
        self._by_firmware = by_firmware
        self._resumed = resumed
        self._waiting = waiting
        self._told = 0.0
        self._scope = trio.CancelScope()

    def heard(self) -> None:
        """Record that the guest has printed something."""
        self._scope.deadline = trio.current_time() + SILENT_SECONDS

    async def watch(self) -> Silent | None:
        """Return after the next silence; of one wait for data only once.

        Returns:
            None if the guest waits for input.
        """
        while True:
            self._scope = trio.CancelScope()
            self.heard()
            with self._scope:
                await trio.sleep_forever()
            asks = self._transcript.prompt_time is not None or self._transcript.asks()
            if asks and not self._resumed:
                return None
            silent = tr(
                "has printed nothing for {silent_seconds:g} s", silent_seconds=SILENT_SECONDS
            )
            waiting = self._waiting()
            if waiting is None and self._resumed:
                continue
            if waiting is None:
                return Silent(silent + "; " + self._program(), waits=False)
            if waiting.since != self._told:
                self._told = waiting.since
                since = time.time() - waiting.since
                return Silent(
                    tr(
                        "{silent}: it has waited for data for {since:.0f} s ({what}). It goes on"
                        " when some arrives",
                        silent=silent,
                        since=since,
                        what=waiting.what,
                    ),
                    waits=True,
                )

    def _program(self) -> str:
        if self._by_firmware:
            return tr(
                "its kernel may print elsewhere: it needs console=ttyS0 in the settings of the"
                " disk's boot loader. Or the disk is made for another machine: its kernel needs"
                " drivers of virtio (PCI, block, network), and its boot loader perhaps the other"
                " firmware (--firmware bios or uefi)"
            )
        return tr(
            "it runs {started}. It may wait for data (`p2pcloop status` tells), or print"
            " elsewhere: with --append init=/bin/sh it gives a shell",
            started=self._transcript.started or tr("the kernel alone, no init yet"),
        )
