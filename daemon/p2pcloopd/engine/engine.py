"""All torrents of one store: adding, restoring, seeding and counting them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from p2pcloop.errors import MismatchError
from p2pcloop.words import tr
from p2pcloopd.engine.bt.session import CLOSE_SECONDS, Session, open_session
from p2pcloopd.engine.bt.session_dht import Dht
from p2pcloopd.engine.bt.session_swarm import SessionSwarm
from p2pcloopd.engine.bt.settings import EngineSettings
from p2pcloopd.engine.disk.content import links
from p2pcloopd.engine.disk.copies import record_copy
from p2pcloopd.engine.disk.metainfo import HASH_SIZE, TorrentLayout
from p2pcloopd.engine.disk.record import Peer, Record, Sources
from p2pcloopd.engine.disk.seeding import discard, make_torrent, move_into_place, remove_directory
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.swarm import EngineStatistics
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent

log = logging.getLogger(__name__)


class Engine:
    """All torrents of one store. Made by `open_engine`.

    Attributes:
        dht: the DHT, or None where the user did not turn it on.
        demand: the readers of all torrents.
        tuning: the constants that decisions depend on.
        on_saved: called when more of a torrent has become durable.
    """

    def __init__(
        self,
        session: Session,
        store_dir: Path,
        on_stall: Callable[[Torrent], None],
        tuning: Tuning,
    ) -> None:
        self._session = session
        self.tuning = tuning
        self._store = store_dir
        self._on_stall = on_stall
        self.dht = Dht(session, session.settings.dht_nodes) if session.settings.dht else None
        self.on_saved: Callable[[], None] = lambda: None
        self._torrents: dict[bytes, Torrent] = {}
        self._named: dict[str, dict[bytes, Torrent]] = {}
        self._adding = trio.Lock()
        self.demand = Demand(tuning)
        self._nursery: trio.Nursery

    @property
    def listen_ports(self) -> list[tuple[str, int]]:
        """(host, port) for each item of `settings.listen`, in that order."""
        return self._session.listening.ports

    def set_rates(self, download: int, upload: int) -> None:
        """Keep to other limits, in bytes a second, 0 for none; see `EngineSettings`."""
        self._session.set_rates(download, upload)

    @property
    def torrents(self) -> tuple[Torrent, ...]:
        """In the order in which they were added."""
        return tuple(self._torrents.values())

    def get(self, info_hash: bytes) -> Torrent | None:
        """The torrent, if it was added."""
        return self._torrents.get(info_hash)

    def named(self, name: str) -> tuple[Torrent, ...]:
        """Those of which it is known that they are called so."""
        return tuple(self._named.get(name, {}).values())

    async def add(
        self,
        info_hash: bytes,
        *,
        peers: Iterable[Peer] = (),
        trackers: Iterable[str] = (),
        web_seeds: Iterable[str] = (),
        public: bool = False,
        elsewhere: Callable[[], Awaitable[bytes | None]] | None = None,
    ) -> Torrent:
        """Have a torrent, and look for it in these places too. Nothing is fetched by this.

        Args:
            public: announce it, from now on; a torrent that is public stays so.
            elsewhere: as of `Torrent`.

        Raises:
            StorageError: the store cannot be read or written.
        """
        sources = Sources(tuple(peers), tuple(trackers), tuple(web_seeds), public)
        async with self._adding:
            torrent = self._torrents.get(info_hash)
            if torrent is None:
                return await self._add(info_hash, sources, elsewhere)
        if elsewhere is not None or sources.peers:
            torrent.offer(elsewhere)
        await torrent.add_sources(sources)
        return torrent

    def set_neighbours(self, peers: Iterable[Peer]) -> None:
        """Tell which peers are on the local network: they are tried for whatever is missing."""
        before, self._session.neighbours = self._session.neighbours, set(peers)
        if not self._session.neighbours <= before:
            for torrent in self.torrents:
                torrent.peers.look_again()

    async def remove(self, info_hash: bytes, tmp: Path) -> bool:
        """Forget a torrent and delete its directory, by way of `tmp` on the same file system.

        Returns:
            False, and nothing happened, where it is not known or a reader waits for it.

        Raises:
            StorageError: the disk refused; what is left of it in `tmp` may be deleted.
        """
        async with self._adding:
            torrent = self._torrents.get(info_hash)
            if torrent is None or torrent.peers.wanted or torrent.fetcher.wants.read:
                return False
            with trio.CancelScope(shield=True):
                del self._torrents[info_hash]
                for known in self._named.values():
                    known.pop(info_hash, None)
                await torrent.end()
                directory = self._store / info_hash.hex()
                await trio.to_thread.run_sync(remove_directory, directory, tmp)
        return True

    async def restore(self) -> None:
        """Add every torrent of the store.

        Raises:
            StorageError: the store cannot be read.
        """
        for path in sorted(self._store.iterdir()) if self._store.is_dir() else ():
            try:
                info_hash = bytes.fromhex(path.name)
            except ValueError:
                info_hash = b""
            if len(info_hash) != HASH_SIZE:
                log.warning("%s is not a torrent of ours and is left alone", path)
                continue
            await self.add(info_hash)

    async def seed(
        self,
        staging: Path,
        progress: Callable[[int, int], None] | None = None,
        public: bool = False,
        *,
        expected: bytes | None = None,
    ) -> Torrent:
        """Make a torrent of what lies in `staging`/data and seed it.

        The same content gives the same info hash. `staging`, on the store's file system, becomes
        the torrent's directory. Files in it may be symbolic links: what they lead to is read and
        never written. Where the torrent is here already, what it reads stays in use: see copies.py.

        Args:
            progress: called from a worker thread with (bytes hashed, bytes in all).
            public: announce it, from now on; a torrent that is public stays so.
            expected: what the info hash must be.

        Raises:
            FormatError: there is nothing in it, or it cannot be a torrent.
            MismatchError: it is another torrent: no client was served any of it.
            StorageError: the disk refused.
        """

        def report(done: int, total: int) -> None:
            trio.from_thread.check_cancelled()  # the caller went away: hash no more
            if progress is not None:
                progress(done, total)

        info_hash = await trio.to_thread.run_sync(make_torrent, staging, report)
        if expected not in (None, info_hash):
            await trio.to_thread.run_sync(discard, staging)
            raise MismatchError(
                tr(
                    "it is torrent {info_hash}, not the one that was expected",
                    info_hash=info_hash.hex(),
                )
            )
        async with self._adding:
            known = self._torrents.get(info_hash)
            if known is not None and await trio.to_thread.run_sync(self._suffices, known, staging):
                record = Record(self._store / info_hash.hex())
                await trio.to_thread.run_sync(record.freshen)
                await trio.to_thread.run_sync(discard, staging)
            else:
                move = partial(move_into_place, staging, self._store / info_hash.hex())
                if known is None:
                    await trio.to_thread.run_sync(move)
                    return await self._add(info_hash, Sources(public=public))
                await known.replace(move)
            await known.add_sources(Sources(public=public))
            return known

    async def statistics(self) -> EngineStatistics:
        """What the session does and did."""
        totals = await self._session.totals()
        torrents = tuple(torrent.statistics() for torrent in self.torrents)
        return EngineStatistics(
            torrents,
            totals["net.recv_bytes"] + totals["net.recv_ip_overhead_bytes"],
            totals["net.sent_bytes"] + totals["net.sent_ip_overhead_bytes"],
        )

    # --- inside -----------------------------------------------------------------------------

    async def _add(
        self,
        info_hash: bytes,
        sources: Sources,
        elsewhere: Callable[[], Awaitable[bytes | None]] | None = None,
    ) -> Torrent:
        record = Record(self._store / info_hash.hex())
        await trio.to_thread.run_sync(record.create)
        swarm = SessionSwarm(self._session, info_hash, record.data)
        torrent = Torrent(
            info_hash,
            record,
            swarm,
            self.demand,
            decode=self._session.decode,
            on_stall=self._on_stall,
            tuning=self.tuning,
        )
        torrent.elsewhere = elsewhere
        torrent.on_known = self._record_name
        torrent.saver.on_saved = self._report_saved
        swarm.attach(torrent, self._nursery)
        await torrent.start(sources)
        self._torrents[info_hash] = torrent
        self._nursery.start_soon(torrent.run)
        return torrent

    def _record_name(self, torrent: Torrent, layout: TorrentLayout) -> None:
        self._named.setdefault(layout.name, {})[torrent.info_hash] = torrent

    def _report_saved(self) -> None:
        self.on_saved()

    def _suffices(self, torrent: Torrent, staging: Path) -> bool:
        """Whether all of a torrent is here; files elsewhere of the same content are noted."""
        if not torrent.usable():
            return False
        directory = self._store / torrent.info_hash.hex()
        here, there = links(directory / "data"), links(staging / "data")
        if here and here != there:
            if here.keys() != there.keys():
                return False
            record_copy(directory, there)
        return True

    def serve(self, nursery: trio.Nursery) -> None:
        """Run the torrents' tasks in a nursery from now on."""
        self._nursery = nursery
        if self.dht is not None:
            nursery.start_soon(self.dht.run)

    async def close(self) -> None:
        """Make durable what has arrived and leave all swarms."""
        async with trio.open_nursery() as nursery:
            for torrent in self.torrents:
                nursery.start_soon(_finish, torrent)


@asynccontextmanager
async def open_engine(
    settings: EngineSettings,
    store_dir: Path,
    on_stall: Callable[[Torrent], None] | None = None,
    tuning: Tuning = TUNING,
) -> AsyncIterator[Engine]:
    """Run an engine on a store (the home's `torrents`) while the context lasts.

    Leaving the context makes durable what has arrived, and takes 15 s at most.

    Args:
        tuning: the fetch scheduler's constants.
        on_stall: called for a torrent every 10 s during which data was needed and nothing arrived.

    Raises:
        BusyError: a port is taken.
        UsageError: it cannot listen where it was told to.
    """
    async with open_session(settings) as session:
        engine = Engine(session, store_dir, on_stall or (lambda _torrent: None), tuning)
        try:
            async with trio.open_nursery() as nursery:
                engine.serve(nursery)
                yield engine
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                await engine.close()


async def _finish(torrent: Torrent) -> None:
    await torrent.save()
    await torrent.stop()
