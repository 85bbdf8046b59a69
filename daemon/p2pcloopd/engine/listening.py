"""Where a session listens: what the user asked for, and what came of it."""

from __future__ import annotations

import ipaddress
import socket

import trio

from p2pcloop.errors import P2pcloopError, UsageError

LISTEN_SECONDS = 10


class Listening:
    """The sockets that a session is to listen on.

    Attributes:
        wanted: (address, port) of each, in the user's order.
    """

    def __init__(self, listen: tuple[str, ...]) -> None:
        """Take `EngineSettings.listen`; raises as `parse_listen`."""
        self.wanted = parse_listen(listen)
        self._listen = listen
        self._ports: dict[tuple[str, int], int] = {}
        self._error: P2pcloopError | None = None
        self._changed = trio.Event()

    @property
    def ports(self) -> list[tuple[str, int]]:
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
            raise UsageError(f"cannot listen on {', '.join(self._listen)}")

    def on_bound(self, endpoint: tuple[str, int]) -> None:
        """Note that a TCP socket listens."""
        for host, port in self.wanted:
            if (host, port) not in self._ports and listens_for(host, port, endpoint):
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


def parse_listen(listen: tuple[str, ...]) -> list[tuple[str, int]]:
    """Take `HOST:PORT` strings apart.

    Port 0 of a host that stands for every interface becomes a free port, since libtorrent would
    take another one on each interface.

    Raises:
        UsageError: one is not an address and a port.
    """
    parsed = []
    for where in listen:
        host, _, digits = where.rpartition(":")
        try:
            address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
            port = int(digits)
        except ValueError as err:
            raise UsageError(
                f"cannot listen on {where!r}: {err}", hint="write ADDRESS:PORT, as 127.0.0.1:6881"
            ) from err
        if not 0 <= port < 1 << 16:
            raise UsageError(f"cannot listen on {where!r}: {port} is not a port")
        if address.is_unspecified and not port:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            with socket.socket(family) as probe:
                probe.bind((str(address), 0))
                port = probe.getsockname()[1]
        parsed.append((str(address), port))
    return parsed


def listens_for(host: str, port: int, bound: tuple[str, int]) -> bool:
    """Whether a bound socket is (one of) those that an item of `listen` asks for."""
    wanted, actual = ipaddress.ip_address(host), ipaddress.ip_address(bound[0])
    same_host = wanted == actual or (wanted.is_unspecified and wanted.version == actual.version)
    return same_host and port in (0, bound[1])
