"""A guest's network card on a tap: of a LAN of this home, or on a bridge of this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from p2pcloop.frozen import dataclass
from p2pcloop.protocol.control import ControlReceiver, Event
from p2pcloop.text import printable
from p2pcloopd.guest.system.addresses import GUEST_INTERFACE, Addresses

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Card:
    """A card that a guest may have, as long as its descriptors are open.

    Attributes:
        tap: its descriptor.
        mac: as text.
        mtu: bytes of its longest IP packet.
        addresses: what it has, or None where a server outside gives them.
        owner: a connection to the process that has its LAN, or None.
    """

    tap: int
    mac: str
    mtu: int
    addresses: Addresses | None
    owner: socket.socket | None = None

    @property
    def uml_parameter(self) -> str:
        """The kernel parameter that makes the tap the guest's network card. A tap gives and takes
        one frame at a time: `vec=1` is for sockets."""
        card = f"{GUEST_INTERFACE}:transport=fd,fd={self.tap},mtu={self.mtu},vec=0"
        return f"{card},mac={self.mac}"

    async def follow(self, say: Callable[[str], None]) -> None:
        """Tell what becomes of the card's LAN, until its end or until cancelled."""
        if self.owner is None:
            return
        receiver = ControlReceiver()
        with trio.socket.fromfd(self.owner.fileno(), self.owner.family, self.owner.type) as sock:
            while data := await _received(sock):
                for message in receiver.receive(data):
                    if isinstance(message, Event):
                        say(printable(str(message.fields.get("text"))))
        say("is on its own now: the process that had its LAN has ended")


async def _received(sock: trio.socket.SocketType) -> bytes:
    try:
        return await sock.recv(_CHUNK)
    except ConnectionResetError:
        return b""
