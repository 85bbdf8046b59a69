"""The peers of one torrent: which to try, how it went, and trying again while data is needed."""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from p2pcloop.formats.link import format_peer
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.engine.disk.record import Peer, Sources
from p2pcloopd.engine.fetch.health import Rate
from p2pcloopd.engine.fetch.swarm import ServerStatistics, Swarm, Traffic
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.tasks import Pulse

log = logging.getLogger(__name__)

MAX_COUNTED = 1024
"""Peers of which bytes are counted."""


@dataclass(frozen=True, slots=True)
class PeerTried:
    """How it went with a peer that the user named.

    Attributes:
        address: `host:port` as it was named.
        connected: whether it is connected now.
        error: what happened last, None where nothing did yet.
    """

    address: str
    connected: bool
    error: str | None

    def __str__(self) -> str:
        state = "connected" if self.connected else self.error or "no answer yet"
        return f"{self.address} ({state})"


def is_address(host: str) -> bool:
    """Whether it is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Peers:
    """Keeps peers connected while they are needed; an idle torrent tries nothing.

    Args:
        on_stall: called every 10 s while data is needed and nothing arrives.
        rejoin: leaves the swarm and joins it again; libtorrent's own bans end only so.
        changed: notified when a peer is connected.

    Attributes:
        sources: where to look.
        banned: those who sent wrong bytes.
        received: bytes of content by address, of this run.
        received_total: bytes of content that came from all peers.
        by_http: bytes of content by the URL of the server that sent them, of this run.
        connections: how many were made so far.
        heard_at: when a peer sent content last; bytes_at: when content arrived last, from wherever.
    """

    def __init__(
        self,
        swarm: Swarm,
        on_stall: Callable[[], None],
        rejoin: Callable[[], Awaitable[None]],
        tuning: Tuning,
        changed: Pulse,
    ) -> None:
        self.sources = Sources()
        self.banned: set[Peer] = set()
        self.received: Counter[Peer] = Counter()
        self.received_total = 0
        self.by_http: Counter[str] = Counter()
        self._http_recent: deque[tuple[float, str, int]] = deque()
        self.heard_at = -math.inf
        self._swarm = swarm
        self._on_stall = on_stall
        self._rejoin = rejoin
        self._tuning = tuning
        self._changed = changed
        self.connections = 0
        self._acquitted = False
        self._needs = 0
        self._needed = trio.Event()
        self._again = trio.Event()
        self._connected: set[Peer] = set()
        self._errors: dict[Peer, str] = {}
        self._addresses: dict[Peer, set[Peer]] = {}
        self._resolving: set[Peer] = set()
        self._looked = -math.inf
        self._since = 0.0
        self._lifted = 0.0
        self._dialled = self._hurried = -math.inf
        self._woken = False
        self._heard: dict[Peer, float] = {}
        self.bytes_at = -math.inf
        self._rate = Rate(tuning.rate_seconds)

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Say that data is needed, while the context lasts."""
        self._needs += 1
        if self._needs == 1:
            self._since = trio.current_time()
            self._needed.set()
        try:
            yield
        finally:
            self._needs -= 1
            if not self._needs:
                self._needed = trio.Event()

    @property
    def wanted(self) -> bool:
        """Whether data is needed."""
        return self._needs > 0

    @property
    def connected(self) -> bool:
        """Whether any peer is."""
        return bool(self._connected)

    @property
    def sole(self) -> bool:
        """Whether no more than one peer is known, and no tracker to ask for others."""
        most = max(len(self._connected), len(self.sources.peers))
        return most <= 1 and not self.sources.trackers

    def hopeful(self) -> bool:
        """Whether a peer is connected, or one that was named may be yet."""
        return self.connected or any(peer.error is None for peer in self.tried())

    def try_again(self, *, begun: bool = False) -> None:
        """Connect now: the swarm was joined anew, or there are new peers to try.

        Args:
            begun: libtorrent does so already. It never does for a torrent that wants nothing.
        """
        if begun:
            self._dialled = trio.current_time()
        self._again.set()

    def hurry(self) -> None:
        """Connect at once, if no peer is connected: something is asked of peers from now on.

        What was tried before that does not count: libtorrent connects for nothing that is unwanted,
        and not before the swarm is joined.
        """
        if trio.current_time() - self._hurried >= self._tuning.peer_retry:
            self._hurried = trio.current_time()
            self._dialled = -math.inf
            self._woken = True
            self._again.set()

    def look_again(self) -> None:
        """Search for peers anew, now if data is needed: there may be others to be found."""
        self._looked = -math.inf
        if self._needs:
            self.try_again()

    def tried(self) -> tuple[PeerTried, ...]:
        """The named peers, in their order."""
        return tuple(self._tried(peer) for peer in self.sources.peers)

    def _tried(self, peer: Peer) -> PeerTried:
        addresses = self._addresses.get(peer, {peer})
        errors = [self._errors[a] for a in (peer, *addresses) if a in self._errors]
        connected = bool(self._connected & addresses)
        return PeerTried(format_peer(peer), connected, errors[-1] if errors else None)

    def window(self) -> int:
        """Bytes that readahead asks for at once: what arrives in a quarter of a second."""
        tuning = self._tuning
        size = self._rate.value * tuning.window_seconds
        return int(min(max(size, tuning.min_window), tuning.max_window))

    def is_silent(self, address: Peer) -> bool:
        """Whether nothing came from a peer for a second."""
        return trio.current_time() - self._heard.get(address, -math.inf) >= self._tuning.peer_silent

    def stalled(self) -> float:
        """Seconds since something arrived, or 0 where no data is needed."""
        return trio.current_time() - self._since if self._needs else 0.0

    def on_connected(self, address: Peer) -> None:
        self._connected.add(address)
        self._errors.pop(address, None)
        self.connections += 1
        self._changed.notify()

    def on_disconnected(self, address: Peer, error: str) -> None:
        self._connected.discard(address)
        self._dialled = -math.inf
        if address not in self.banned:  # being hung up on is not the cause, but what follows
            self._record(address, error)

    def on_banned(self, address: Peer) -> None:
        log.warning("peer %s sent wrong bytes and is dropped", format_peer(address))
        self.banned.add(address)
        self._record(address, tr("sent wrong bytes and is not asked again"))

    def on_unproven(self, address: Peer) -> None:
        """Have a peer that libtorrent banned asked again: the wrong bytes may be another's."""
        if address not in self.banned:
            log.info("peer %s is asked again: nothing proves that it lied", format_peer(address))
            self._acquitted = True
            self.try_again()

    def on_received(self, address: Peer, size: int) -> None:
        """Count bytes of content by where they came from."""
        now = self.heard_at = self.on_bytes(size)
        self.received_total += size
        if address in self.received or len(self.received) < MAX_COUNTED:
            self.received[address] += size
            self._heard[address] = now

    def on_http(self, base: str, size: int) -> None:
        """Count bytes of content that an HTTP server sent, by its URL; `on_bytes` says when."""
        self.by_http[base] += size
        self._http_recent.append((trio.current_time(), base, size))
        self._forget_old()

    def http_rates(self) -> Counter[str]:
        """Bytes a second that came of late from each HTTP server that sent any."""
        self._forget_old()
        rates: Counter[str] = Counter()
        for _, base, size in self._http_recent:
            rates[base] += int(size / self._tuning.http_rate_seconds)
        return rates

    def traffic(self) -> Traffic:
        """What came of content by HTTP, and before the swarm was left."""
        return Traffic(
            payload_received=self.received_total + self.by_http.total(),
            down_rate=self.http_rates().total(),
            servers=tuple(ServerStatistics(*each) for each in self.by_http.items()),
        )

    def _forget_old(self) -> None:
        old = trio.current_time() - self._tuning.http_rate_seconds
        while self._http_recent and self._http_recent[0][0] < old:
            self._http_recent.popleft()

    def on_bytes(self, size: int) -> float:
        """Note that bytes of content came, from wherever; return when."""
        self._since = self.bytes_at = now = trio.current_time()
        self._rate.add(size, now)
        return now

    def _record(self, address: Peer, error: str) -> None:
        named = address in self.sources.peers or any(
            address in known for known in self._addresses.values()
        )
        if named:
            self._errors[address] = error

    async def run(self) -> None:
        """Try the named peers that are not connected, every second while data is needed."""
        async with trio.open_nursery() as nursery:
            await self._run(nursery)

    async def _run(self, nursery: trio.Nursery) -> None:
        reported = 0.0
        while True:
            self._again = trio.Event()
            await self._lift_bans()
            if self._needs:
                self._look_up()
            alone = self._woken and self._alone()
            self._woken = False
            self._connect_all(nursery, hurry=alone)
            if not self._needs:
                await self._wait_for_need()
                self._woken = True
                reported = 0.0
                continue
            with trio.move_on_after(self._tuning.peer_retry):
                await self._again.wait()
            if self.stalled() < self._tuning.peers_stall:
                reported = 0.0
            elif self.stalled() - reported >= self._tuning.peers_stall:
                reported = self.stalled()
                self._on_stall()

    def _look_up(self) -> None:
        tuning = self._tuning
        stalls = self.stalled() >= tuning.peers_stall
        pause = tuning.peers_stall if stalls else tuning.peers_search
        if trio.current_time() - self._looked >= pause:
            self._looked = trio.current_time()
            self._swarm.look_up()

    def _alone(self) -> bool:
        """Whether data is needed and only named peers are known, none on its way or connected.

        Foreign clients hang up on a peer that wants nothing: aria2 after 30 s, transmission after
        5 minutes, libtorrent as it comes at once.
        """
        sources = self.sources
        announced = sources.public or sources.trackers  # a pause would be told there
        if not self._needs or self._connected or announced:
            return False
        return trio.current_time() - self._dialled >= self._tuning.peer_retry

    async def _lift_bans(self) -> None:
        """Begin anew where the bans leave a reader alone, or hit the wrong peer."""
        now = trio.current_time()
        tried = min(self.stalled(), now - self._lifted)
        if tried >= self._tuning.ban and (self.banned or not self._connected):
            self.banned.clear()
            self._lifted = now
        elif not self._acquitted:
            return
        self._acquitted = False
        await self._rejoin()

    async def _wait_for_need(self) -> None:
        async with trio.open_nursery() as nursery:

            async def first(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, self._needed)
            nursery.start_soon(first, self._again)

    def _connect_all(self, nursery: trio.Nursery, *, hurry: bool) -> None:
        """Connect to named peers that are not connected; names are looked up meanwhile.

        Args:
            hurry: no other peer is on the way.
        """
        fresh = False
        for peer in self.sources.peers:
            if self._connected & self._addresses.get(peer, {peer}):
                continue
            if self._needs:
                self._dialled = trio.current_time()
            if is_address(peer[0]):
                self._swarm.connect(peer)
                fresh = True
            elif peer not in self._resolving:
                self._resolving.add(peer)
                nursery.start_soon(self._connect_by_name, peer, hurry)
        if hurry and fresh:
            self._swarm.hurry()

    async def _connect_by_name(self, peer: Peer, hurry: bool) -> None:
        try:
            found = await trio.socket.getaddrinfo(*peer, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as err:
            self._errors[peer] = tr(
                "the name is not known: {err}", err=getattr(err, "strerror", err)
            )
            return
        finally:
            self._resolving.discard(peer)
        self._errors.pop(peer, None)
        addresses = {(str(info[4][0]), peer[1]) for info in found}
        self._addresses[peer] = addresses
        for address in addresses:
            self._swarm.connect(address)
        if hurry:
            self._swarm.hurry()
