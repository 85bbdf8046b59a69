"""Ports of this machine that tell by which of its addresses they were reached."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self


class Listeners:
    """A TCP and a UDP port at all addresses of this machine.

    Attributes:
        tcp: the number of the one.
        udp: the number of the other. A datagram for it holds the address that it was sent to.
        reached: "tcp ADDRESS" and "udp ADDRESS", of all that `look` has seen.
    """

    def __init__(self) -> None:
        self.reached = set[str]()
        self._stack = ExitStack()
        self._tcp = self._stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        self._udp = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(("0.0.0.0", 0))
        for listener in (self._tcp, self._udp):
            listener.setblocking(False)
        self.tcp: int = self._tcp.getsockname()[1]
        self.udp: int = self._udp.getsockname()[1]

    def join(self, group: str, interface: str) -> None:
        """Take datagrams for a multicast group at the interface with an address."""
        member = socket.inet_aton(group) + socket.inet_aton(interface)
        self._udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)

    def look(self) -> None:
        """Take what has arrived. What passes loopback may arrive a moment later on a busy machine:
        the kernel leaves it to its thread ksoftirqd."""
        with suppress(BlockingIOError):
            while True:
                with self._tcp.accept()[0] as connection:
                    self.reached.add(f"tcp {connection.getsockname()[0]}")
        with suppress(BlockingIOError):
            while True:
                self.reached.add(f"udp {self._udp.recv(100).decode()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
