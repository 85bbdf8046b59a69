"""The interface between a torrent and its libtorrent swarm.

`Torrent` knows no libtorrent: it speaks to a `Swarm`, which session_swarm.py makes of a torrent's
handle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Protocol

from p2pcloop.frozen import dataclass
from p2pcloop.store.in_place import HeldFile
from p2pcloopd.engine.disk.record import Peer, Sources


class Priority(IntEnum):
    """How urgently a piece is wanted: libtorrent's own numbers."""

    IDLE = 0
    """It is not wanted, and not fetched."""
    FILL = 1
    """It is fetched because there is time."""
    READAHEAD = 4
    """A guest is expected to want it soon."""
    DEMAND = 7
    """A guest waits for it."""


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer of one torrent.

    Attributes:
        address: `host:port`, an IPv6 host in brackets.
        connected: whether it is now.
        received: bytes of content that came from it, since p2pcloopd started.
        sent: bytes of content that it got from us on the present connection.
        down_rate, up_rate: bytes a second, at present.
    """

    address: str
    connected: bool
    received: int
    sent: int = 0
    down_rate: int = 0
    up_rate: int = 0


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """An HTTP server of one torrent.

    Attributes:
        base: the URL of a mirror or of a web seed.
        received: bytes of content that came from it, since p2pcloopd started.
    """

    base: str
    received: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What crossed for one torrent, in bytes since it was added, headers not counted.

    Attributes:
        payload_received: of content, by whatever way.
        peers: BitTorrent peers.
        servers: HTTP servers.
    """

    payload_received: int = 0
    payload_sent: int = 0
    down_rate: int = 0
    up_rate: int = 0
    peers: tuple[PeerStatistics, ...] = ()
    servers: tuple[ServerStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class TorrentStatistics:
    """One torrent's state.

    Attributes:
        name, size: None until the metadata is known.
        have_bytes: bytes of the content that are here.
        trouble: why they are not, in a word: "gone", "changed" or "checking" files that are seeded
            where they lie, "damaged" ones of the store; None where nothing is known to be wrong.
        reason: the same in a sentence.
        traffic: what was transferred by BitTorrent, and the peers.
        provisional_bytes: bytes that are here of pieces that are not.
        received: bytes of the content that came, from peers and over HTTP.
        received_again: of them, those that were here; received_hedged: those that were here since
            a second source was asked (engine/fetch/received.py).
        wanted: a reader waits for bytes of it, or something fetches them.
        stalled: seconds since any came; 0.0 where none is wanted.
        tried: the named peers that were tried, with the result of each, and HTTP servers with
            their faults; empty where nothing is wanted.
    """

    info_hash: bytes
    name: str | None
    size: int | None
    have_bytes: int
    trouble: str | None
    reason: str | None
    traffic: Traffic
    provisional_bytes: int
    received: int
    received_again: int
    received_hedged: int
    wanted: bool
    stalled: float
    tried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """The whole session's state.

    Attributes:
        torrents: in the order in which they were added.
        received, sent: all bytes that crossed since the start, protocol and estimated TCP/IP
            headers included.
    """

    torrents: tuple[TorrentStatistics, ...]
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Others:
    """The peers that have not all of a torrent.

    Attributes:
        here: this node's own address on a connection to one of them; "" where there is none.
        hosts: their addresses.
    """

    here: str = ""
    hosts: tuple[str, ...] = ()


class Swarm(Protocol):
    """One torrent in the session. Nothing here waits but `stop`."""

    def start(
        self,
        info: bytes | None,
        have: list[bool] | None,
        sources: Sources,
        held: Mapping[int, HeldFile],
    ) -> None:
        """Join the swarm, wanting nothing yet.

        Args:
            info: the bencoded info dictionary, or None to get it from peers.
            have: which pieces are here (one item a piece); None: all are, and each is compared
                with its hash before it leaves for the first time.
            held: files that lie elsewhere, by their numbers: these very ones are read, whatever
                has their names, and nothing is ever written.
            sources: whether others may be told of the torrent; peers come by `connect`, trackers
                by `look_up`, and HTTP servers are no part of the swarm.
        """

    async def stop(self) -> None:
        """Leave the swarm; when it returns, nothing more is written."""

    def prioritize(self, pieces: Iterable[int], priority: Priority) -> None:
        """Say how urgently pieces are wanted; pieces that are here are to be `IDLE`."""

    def insist(self) -> None:
        """Ask idle peers as well for what others were asked for, for a while, if one is silent."""

    def others(self) -> Others:
        """Who else is connected and has not all of it."""

    def copies(self) -> list[int]:
        """How many of those have each piece; empty if it is not known."""

    def crowd(self, *, on: bool, without: frozenset[str]) -> None:
        """Ask each peer for little at once while others want the same.

        Args:
            without: addresses of hosts that are no peers meanwhile; of the others each is asked
                for as much as it is alone.
        """

    def foreign(self) -> bool:
        """Whether a peer is connected that is no node of ours, and none that is."""

    def requested(self) -> set[int]:
        """Pieces of which a block was asked of a peer, or came: they are not whole yet.

        News come before it returns: what became whole until then is told as ever.
        """

    def add_piece(self, piece: int, data: bytes) -> None:
        """Have a piece that came otherwise kept and passed on; news follow as for all others."""

    def read_piece(self, piece: int) -> None:
        """Have a piece that arrived handed over by `Fetcher.on_piece_read`."""

    def flush(self) -> None:
        """Write what is cached to the files; `Store.on_flushed` follows."""

    def connect(self, peer: Peer) -> None:
        """Connect to an address (not a name), again if it failed before."""

    def hurry(self) -> None:
        """Connect now to those that `connect` named, where no peer is connected."""

    def add_sources(self, sources: Sources) -> None:
        """Tell others of the torrent, if they may be told from now on."""

    def look_up(self) -> None:
        """Ask for peers whom the user may ask: trackers, DHT, neighbours; `connect` to them."""

    def here(self) -> list[bool]:
        """Which pieces libtorrent takes for right, one item a piece; empty if it does not know."""

    def traffic(self) -> Traffic:
        """What was transferred."""
