"""The addresses on which a session listens: those asked for, and those it got."""

from __future__ import annotations

import ipaddress

import trio

from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.formats.link import format_peer
from p2pcloop.words import tr
from p2pcloopd.engine.disk.record import Peer

LISTEN_SECONDS = 10


class Listening:
    """The sockets that a session is to listen on.

    Attributes:
        wanted: `EngineSettings.listen`.
    """

    def __init__(self, wanted: tuple[Peer, ...]) -> None:
        self.wanted = wanted
        self._ports: dict[Peer, int] = {}
        self._error: P2pcloopError | None = None
        self._changed = trio.Event()

    @property
    def ports(self) -> list[Peer]:
        """(address, port) of each, the port being the true one; only once `wait` returned."""
        return [(host, self._ports[host, port]) for host, port in self.wanted]

    async def wait(self) -> None:
        """Return when all listen.

        Raises:
            P2pcloopError: what `fail` was told.
            UsageError: nothing was heard of some for 10 s.
        """
        with trio.move_on_after(LISTEN_SECONDS):
            while len(self._ports) < len(self.wanted) and self._error is None:
                await self._changed.wait()
        if self._error is not None:
            raise self._error
        if len(self._ports) < len(self.wanted):
            raise UsageError(
                tr(
                    "cannot listen on {format_peer}",
                    format_peer=", ".join(map(format_peer, self.wanted)),
                )
            )

    def on_bound(self, endpoint: Peer) -> None:
        """Note that a TCP socket listens."""
        for host, port in self.wanted:
            if (host, port) not in self._ports and _listens_for(host, port, endpoint):
                self._ports[host, port] = endpoint[1]
                break
        self._notify()

    def fail(self, error: P2pcloopError) -> None:
        """Have `wait` raise `error`."""
        self._error = error
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _listens_for(host: str, port: int, bound: Peer) -> bool:
    """Whether a bound socket is (one of) those that an item of `listen` asks for."""
    wanted, actual = ipaddress.ip_address(host), ipaddress.ip_address(bound[0])
    same_host = wanted == actual or (wanted.is_unspecified and wanted.version == actual.version)
    return same_host and port in (0, bound[1])
