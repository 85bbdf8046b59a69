"""Other nodes on the local network: DNS-SD over mDNS (RFC 6763, RFC 6762), IPv4.

A node announces one service of type `_p2pcloop._tcp`, whose port is its BitTorrent port and whose
TXT record has `http`, the port where it serves over HTTP. It says nothing of what it has: names
are asked of each node by HTTP, torrents by trying it as a peer.

zeroconf runs on asyncio, so it is given a thread of its own, and only where the user wants it; its
news come here through trio's token.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import ifaddr
import trio
import zeroconf
from zeroconf import (
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)

from p2pcloop.errors import NotHereError, P2pcloopError
from p2pcloop.formats.link import format_peer
from p2pcloop.formats.name import Name
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.names.lookup import FoundRecord, Mirror

_log = logging.getLogger(__name__)

SERVICE = "_p2pcloop._tcp.local."
MAX_NODES = 64
MAX_ADDRESSES = 4
MAX_NEWS = 256
"""News that wait to be looked at; more are lost, and come again when they are announced again."""

INFO_MILLISECONDS = 1000
SETTLE_SECONDS = 2
"""How soon after the start those who are there have answered."""

ASK_SECONDS = 3
"""How long the nodes have to answer when a record is looked for."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a node is reached.

    Attributes:
        addresses: IPv4.
        port: for BitTorrent.
        http_port: None where it does not serve over HTTP.
    """

    addresses: tuple[str, ...]
    port: int
    http_port: int | None

    @property
    def peers(self) -> tuple[tuple[str, int], ...]:
        """As peers of torrents."""
        return tuple((address, self.port) for address in self.addresses)

    @property
    def urls(self) -> tuple[str, ...]:
        """As mirrors."""
        if self.http_port is None:
            return ()
        return tuple(f"http://{format_peer((each, self.http_port))}/" for each in self.addresses)


def own_endpoints(
    listen: Iterable[tuple[str, int]], http_listen: Iterable[tuple[str, int]]
) -> Endpoints | None:
    """What a node tells of itself, or None where it cannot be reached by IPv4.

    Loopback addresses are told only where there are no others: the nodes of one machine then find
    each other, and nothing leaves it.
    """
    sockets = [(host, port) for host, port in listen if ":" not in host]
    distant = [(host, port) for host, port in sockets if not _is_loopback(host)]
    usable = distant or sockets
    if not usable:
        return None
    port = usable[0][1]
    addresses = [each for host, its in usable if its == port for each in _addresses_of(host)]
    http = [its for host, its in http_listen if set(_addresses_of(host)) & set(addresses)]
    return Endpoints(tuple(dict.fromkeys(addresses)), port, http[0] if http else None)


class Lan:
    """This node on the local network, and the others there. `run` must run.

    Args:
        on_change: called when nodes came or went.

    Attributes:
        nodes: the others, by their service names.
    """

    def __init__(self, own: Endpoints, on_change: Callable[[], None]) -> None:
        self.nodes: dict[str, Endpoints] = {}
        self._own = own
        self._on_change = on_change
        self._settled = trio.Event()
        self._loopback = all(map(_is_loopback, own.addresses))
        identity = f"p2pcloop-{secrets.token_hex(6)}"
        self._info = ServiceInfo(
            SERVICE,
            f"{identity}.{SERVICE}",
            port=own.port,
            properties={} if own.http_port is None else {"http": str(own.http_port)},
            server=f"{identity}.local.",
            parsed_addresses=list(own.addresses),
        )

    async def run(self) -> None:
        """Announce this node and look for others, until cancelled. Errors are logged."""
        interfaces = list(self._own.addresses) if self._loopback else InterfaceChoice.All
        try:
            service = await trio.to_thread.run_sync(
                partial(Zeroconf, interfaces, ip_version=IPVersion.V4Only)
            )
        except OSError as err:
            _log.error("nodes on the local network are not looked for: %s", err)
            self._settled.set()
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._settle)
                nursery.start_soon(self._announce, service)
                await self._browse(service)
        finally:
            with trio.CancelScope(shield=True):  # it says goodbye, in half a second
                await trio.to_thread.run_sync(service.close)

    async def settled(self) -> None:
        """Wait until those who are there have been found, 2 s after the start at most."""
        await self._settled.wait()

    async def _settle(self) -> None:
        await trio.sleep(SETTLE_SECONDS)
        self._settled.set()

    async def _announce(self, service: Zeroconf) -> None:
        try:
            await trio.to_thread.run_sync(service.register_service, self._info)
        except (OSError, zeroconf.Error) as err:
            _log.error("this node is not announced on the local network: %s", err)

    async def _browse(self, service: Zeroconf) -> None:
        token = trio.lowlevel.current_trio_token()
        send, receive = trio.open_memory_channel[tuple[str, bool]](MAX_NEWS)

        def take(name: str, here: bool) -> None:
            with suppress(trio.WouldBlock):
                send.send_nowait((name, here))

        def tell(name: str, state_change: ServiceStateChange, **_: object) -> None:
            """In zeroconf's thread."""
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(take, name, state_change is not ServiceStateChange.Removed)

        browser = await trio.to_thread.run_sync(ServiceBrowser, service, SERVICE, [tell])
        try:
            async for name, here in receive:
                if name != self._info.name:
                    self._record(name, await self._ask(service, name) if here else None)
        finally:
            with trio.CancelScope(shield=True):  # its thread ends
                await trio.to_thread.run_sync(browser.cancel)

    async def _ask(self, service: Zeroconf, name: str) -> Endpoints | None:
        """Where a node is, as it says itself."""
        try:
            info = await trio.to_thread.run_sync(
                service.get_service_info, SERVICE, name, INFO_MILLISECONDS
            )
        except zeroconf.Error as err:
            _log.warning("a node on the local network has an improper name: %s", err)
            return None
        return None if info is None else endpoints_of(info, loopback=self._loopback)

    def _record(self, name: str, found: Endpoints | None) -> None:
        """Note that a node came, changed or, where nothing was found, went."""
        before = self.nodes.pop(name, None)
        if found is not None and len(self.nodes) < MAX_NODES:
            self.nodes[name] = found
            self._settled.set()
        if before != self.nodes.get(name):
            self._on_change()


def endpoints_of(info: ServiceInfo, *, loopback: bool) -> Endpoints | None:
    """Check what a node announced; None where it is of no use.

    Args:
        loopback: take loopback addresses and no others, rather than none: no one on the network
            makes this node talk to a server on its own machine.
    """
    addresses = info.parsed_addresses(IPVersion.V4Only)
    usable = tuple(each for each in addresses if _may_be_node(each, loopback))[:MAX_ADDRESSES]
    if not usable or not info.port:
        return None
    told = (info.properties.get(b"http") or b"").decode("ascii", "replace")
    http_port = int(told) if told.isascii() and told.isdigit() and len(told) <= 5 else 0
    return Endpoints(usable, info.port, http_port if 0 < http_port < 1 << 16 else None)


class LanSource:
    """The nodes on the local network as a source of records."""

    def __init__(self, lan: Lan, open_mirror: Callable[[str], Mirror]) -> None:
        self._lan = lan
        self._open_mirror = open_mirror

    @property
    def name(self) -> str:
        return tr("the local network")

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        """The records that the nodes have, as far as they answer in time."""
        found: list[FoundRecord] = []

        async def ask(url: str, node: Endpoints) -> None:
            try:
                data = await self._open_mirror(url).record(name)
            except NotHereError:
                return
            except P2pcloopError as err:
                _log.info("a node on the local network cannot be asked: %s", err)
                return
            found.append(FoundRecord(data, mirrors=(url,), peers=node.peers))

        await self._lan.settled()
        with trio.move_on_after(ASK_SECONDS):
            async with trio.open_nursery() as nursery:
                for node in self._lan.nodes.values():
                    for url in node.urls:
                        nursery.start_soon(ask, url, node)
        return found


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _may_be_node(host: str, loopback: bool) -> bool:
    address = ipaddress.ip_address(host)
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        return False
    return address.is_loopback == loopback


def _addresses_of(host: str) -> list[str]:
    """An address, or for 0.0.0.0 all of this machine but loopback."""
    if not ipaddress.ip_address(host).is_unspecified:
        return [host]
    every = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    return [each for each in every if isinstance(each, str) and not _is_loopback(each)]
