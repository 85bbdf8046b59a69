"""Another way than the swarm for pieces that readers wait for."""

from __future__ import annotations

from typing import Protocol


class Otherwise(Protocol):
    """Brings pieces; see engine/direct.py."""

    def ready(self) -> bool:
        """Whether it can be gone now."""

    def take(self, pieces: list[int]) -> None:
        """Bring pieces, and where that fails, have the swarm asked and peers tried."""


class NoOther:
    """There is none."""

    def ready(self) -> bool:
        """See `Otherwise.ready`."""
        return False

    def take(self, pieces: list[int]) -> None:
        """See `Otherwise.take`; never called."""
