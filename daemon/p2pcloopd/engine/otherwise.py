"""Another way than the swarm for pieces, by exact ranges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Otherwise(Protocol):
    """Brings pieces; see engine/direct.py."""

    def ready(self) -> bool:
        """Whether it can be gone now for what a reader waits for."""

    def usable(self) -> bool:
        """Whether somebody can be asked at all."""

    def brings(self, piece: int) -> bool:
        """Whether a piece is being brought."""

    def take(self, pieces: Iterable[int]) -> None:
        """Bring pieces, and where that fails, have the swarm asked and peers tried."""


class NoOther:
    """There is none."""

    def ready(self) -> bool:
        """See `Otherwise.ready`."""
        return False

    def usable(self) -> bool:
        """See `Otherwise.usable`."""
        return False

    def brings(self, piece: int) -> bool:  # noqa: ARG002  see Otherwise
        """See `Otherwise.brings`."""
        return False

    def take(self, pieces: Iterable[int]) -> None:
        """See `Otherwise.take`; never called."""
