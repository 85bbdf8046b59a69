"""Tells the user which program runs when a guest prints nothing."""

from __future__ import annotations

import trio

from p2pcloopd.guest.transcript import Transcript

SILENT_SECONDS = 20.0
"""The user is told after so long without output."""


class Silence:
    """Waits for the first time that a guest prints nothing for `SILENT_SECONDS`."""

    def __init__(self, transcript: Transcript) -> None:
        """Follow a guest's output."""
        self._transcript = transcript
        self._scope = trio.CancelScope()

    def heard(self) -> None:
        """Record that the guest has printed something."""
        self._scope.deadline = trio.current_time() + SILENT_SECONDS

    async def watch(self) -> str | None:
        """Return after the first silence.

        Returns:
            What the user is to be told, without its subject, the guest; None if the guest waits for
            input.
        """
        self.heard()
        with self._scope:
            await trio.sleep_forever()
        if self._transcript.prompt_time is not None or self._transcript.asks():
            return None
        return (
            f"has printed nothing for {SILENT_SECONDS:g} s; it runs "
            f"{self._transcript.started or 'the kernel alone, no init yet'}. It may wait for data"
            " (`p2pcloop status` tells), or print elsewhere: with --append init=/bin/sh it gives a"
            " shell"
        )
