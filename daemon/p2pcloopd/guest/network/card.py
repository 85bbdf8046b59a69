"""A guest's network card on a tap: of a LAN of this home, or on a bridge of this machine."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

import trio

from p2pcloop.errors import BusyError, GuestError, P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.protocol.control import ControlReceiver, Event
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloopd.guest.network import taps
from p2pcloopd.guest.network.choice import Network, check_bridge
from p2pcloopd.guest.network.forwarding import BoundPort
from p2pcloopd.guest.system.addresses import GUEST_INTERFACE, Addresses

_BRIDGE_TAP = "p2pcloop%d"
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


@contextmanager
def open_card(
    network: Network, home: Home, guest: str, ports: Sequence[BoundPort] = ()
) -> Iterator[Card | None]:
    """A card for a guest, while the context lasts; None for a network that needs no tap.

    Args:
        guest: its name.
        ports: of this machine; with a LAN they lead into the guest from now on.

    Raises:
        P2pcloopError: there can be none, and what to do.
    """
    match network.kind:
        case "lan":
            from p2pcloopd.guest.network import lan  # noqa: PLC0415  not for most guests

            with lan.joined(home, network.name, guest, ports) as card:
                yield card
        case "bridge":
            with _on_bridge(network.name, home, guest) as card:
                yield card
        case _:
            yield None


@contextmanager
def _on_bridge(bridge: str, home: Home, guest: str) -> Iterator[Card]:
    check_bridge(bridge)
    try:
        mtu = taps.interface_mtu(bridge)
        tap = taps.open_tap(_BRIDGE_TAP, mtu, bridge)
    except OSError as err:
        raise cannot_make_card(err, f"on the bridge {bridge}") from err
    try:
        yield Card(tap, _mac_of(home, guest), mtu, None)
    finally:
        os.close(tap)


def cannot_make_card(err: OSError, place: str) -> P2pcloopError:
    """The error of a tap that cannot be made."""
    if err.errno == errno.EBUSY:
        return BusyError(f"there is such a network card {place} already")
    hint = None
    if err.filename == "/dev/net/tun":
        hint = (
            "all users need to read and write it, as in Debian: `chmod 666 /dev/net/tun`, as root"
        )
    return GuestError(f"no network card can be made {place}: {err.strerror}", hint=hint)


def _mac_of(home: Home, guest: str) -> str:
    """The same for each boot of a guest, so that a DHCP server outside gives the same address; an
    address of local administration (IEEE 802)."""
    digest = sha256(f"{socket.gethostname()}\0{home.root.resolve()}\0{guest}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
