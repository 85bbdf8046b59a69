"""When a resumed guest has answered: what it needs later may come from then on."""

from __future__ import annotations

import trio

SILENCE_SECONDS = 0.5
"""A guest that has printed something, and then nothing for so long, has answered: its shell takes a
third of a second for a line."""

UNHEARD_SECONDS = 1.5
"""A guest that goes on and prints nothing for so long is not asked anything."""

SLOWNESS = 5
"""On a slow machine: for so many times as long as its first word took, which its kernel says."""


class Answer:
    """The first answer of a guest."""

    def __init__(self) -> None:
        self._heard = trio.Event()
        self._goes_on, self._has_spoken = trio.Event(), trio.Event()
        self._begun = trio.current_time()

    def begin(self) -> None:
        """Note that the guest goes on."""
        self._begun = trio.current_time()
        self._goes_on.set()

    def hear(self) -> None:
        """Note that the guest has printed something."""
        self._has_spoken.set()
        self._heard.set()
        self._heard = trio.Event()

    async def wait(self, unheard: float = UNHEARD_SECONDS) -> None:
        """Return once the guest has answered, or it is clear that it was asked nothing.

        Args:
            unheard: after so many seconds without output that is clear.
        """
        await self._goes_on.wait()
        with trio.move_on_after(unheard) as silent_so_long:
            await self._has_spoken.wait()
        if silent_so_long.cancelled_caught:
            return
        silent = max(SILENCE_SECONDS, SLOWNESS * (trio.current_time() - self._begun))
        while True:
            with trio.move_on_after(silent) as silence:
                await self._heard.wait()
            if silence.cancelled_caught:
                return
