"""Opens the network card that a guest was asked to have."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.guest.network import taps
from p2pcloopd.guest.network.card import Card
from p2pcloopd.guest.network.choice import Network, check_bridge
from p2pcloopd.guest.network.forwarding import BoundPort

_BRIDGE_TAP = "p2pcloop%d"


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
        raise taps.cannot_make_card(err, tr("on the bridge {bridge}", bridge=bridge)) from err
    try:
        yield Card(tap, _mac_of(home, guest), mtu, None)
    finally:
        os.close(tap)


def _mac_of(home: Home, guest: str) -> str:
    """The same for each boot of a guest, so that a DHCP server outside gives the same address; an
    address of local administration (IEEE 802)."""
    digest = sha256(f"{socket.gethostname()}\0{home.root.resolve()}\0{guest}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
