"""Which clients of an NBD server get a place, before a byte of theirs is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

MAX_CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients a server has at a time. Those beyond are hung up on.

    Attributes:
        served: have a place.
        waiting: wait for one.
        negotiating: have a place, and have not got an export yet.
        of_address: connections of one address; sockets without addresses are not counted.
        admits: whether a client at an address is served at all; it is empty where it has none.
    """

    served: int = MAX_CONNECTIONS
    waiting: int = 4 * MAX_CONNECTIONS
    negotiating: int = MAX_CONNECTIONS
    of_address: int | None = None
    admits: Callable[[str], bool] = lambda _: True


DEFAULT_LIMITS: Final = Limits()


@dataclass(slots=True)
class Crowd:
    """The clients that are connected."""

    limits: Limits
    negotiating: int = 0
    _connected: int = 0
    _of_address: Counter[str] = field(default_factory=Counter)

    def refusal(self, address: str) -> str | None:
        """Why one more client gets no place; None if it does."""
        limits = self.limits
        if not limits.admits(address):
            return f"{address or 'it'} is no client of this server"
        if self._connected >= limits.served + limits.waiting:
            return f"{self._connected} clients are connected"
        if self.negotiating >= limits.negotiating + limits.waiting:
            return f"{self.negotiating} clients have not said what they want"
        if address and limits.of_address and self._of_address[address] >= limits.of_address:
            return f"{address} has {limits.of_address} connections"
        return None

    @contextmanager
    def counted(self, address: str) -> Iterator[Callable[[], None]]:
        """Count a client while the context lasts; gives what is called once it has its export."""
        negotiates = True

        def negotiated() -> None:
            nonlocal negotiates
            if negotiates:
                negotiates = False
                self.negotiating -= 1

        self.negotiating += 1
        self._connected += 1
        self._of_address[address] += 1
        try:
            yield negotiated
        finally:
            negotiated()
            self._connected -= 1
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]
