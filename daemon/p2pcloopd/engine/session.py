"""The BitTorrent engine: one libtorrent session in trio, no thread and no polling of ours.

The only module that imports libtorrent. libtorrent writes a byte into a socket when it has
something to tell; the pump takes all alerts and hands each to its torrent. An alert dies at the
next `pop_alerts`, so what is needed is copied out of it at once.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import libtorrent as lt
import trio

from p2pcloop.errors import BusyError, P2pcloopError, StorageError, UsageError
from p2pcloop.store.have import MAX_PIECES
from p2pcloopd.engine import nodelay
from p2pcloopd.engine.metainfo import HASH_SIZE
from p2pcloopd.engine.peers import format_peer, is_address
from p2pcloopd.engine.record import Peer, Record, Sources
from p2pcloopd.engine.seeding import discard, make_torrent, move_into_place
from p2pcloopd.engine.settings import EngineSettings, listens_for, parse_listen, session_settings
from p2pcloopd.engine.swarm import EngineStatistics, PeerStatistics, TorrentStatistics, Traffic
from p2pcloopd.engine.torrent import Torrent

log = logging.getLogger(__name__)

CLOSE_SECONDS = 15
LISTEN_SECONDS = 10
BLOCK_SIZE = 1 << 14

_ALERTS = (
    lt.alert_category.error
    | lt.alert_category.status
    | lt.alert_category.storage
    | lt.alert_category.connect
    | lt.alert_category.peer
    | lt.alert_category.piece_progress
    | lt.alert_category.block_progress
)


class _Swarm:
    """One torrent in libtorrent's session (p2pcloopd.engine.swarm.Swarm)."""

    def __init__(self, engine: Engine, info_hash: bytes, save_path: Path) -> None:
        self._engine = engine
        self._info_hash = info_hash
        self._save_path = save_path
        self._handle: lt.torrent_handle | None = None
        self._gone = trio.Event()
        self._banned: set[Peer] = set()
        self.torrent: Torrent

    @property
    def handle(self) -> lt.torrent_handle:
        assert self._handle is not None, "the torrent is not in the session"
        return self._handle

    def start(self, info: bytes | None, have: list[bool] | None, sources: Sources) -> None:
        params = lt.add_torrent_params()
        params.save_path = str(self._save_path)
        params.flags = lt.torrent_flags.update_subscribe | lt.torrent_flags.apply_ip_filter
        if not self._engine.settings.pex:
            params.flags |= lt.torrent_flags.disable_pex
        params.trackers = list(sources.trackers)
        params.url_seeds = list(sources.web_seeds)
        # These are connected to at once, others at the next full second.
        params.peers = [p for p in sources.peers if is_address(p[0]) and p not in self._banned]
        params.banned_peers = list(self._banned)
        pieces = MAX_PIECES  # cut to the true number when the metadata comes
        if info is None:
            params.info_hashes = lt.info_hash_t(lt.sha1_hash(self._info_hash))
        else:
            params.ti = lt.torrent_info(b"d4:info" + info + b"e")
            pieces = params.ti.num_pieces()
        if have is None:
            # upload_mode: whatever happens to a file that lies elsewhere, it is never written.
            params.flags |= lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
        else:
            params.piece_priorities = [0] * pieces
            params.have_pieces = have
        self._gone = trio.Event()
        self._handle = self._engine.session.add_torrent(params)
        self._engine.swarms[self._handle] = self

    async def stop(self) -> None:
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        self._engine.session.remove_torrent(handle)
        with trio.move_on_after(CLOSE_SECONDS):
            await self._gone.wait()
        self._engine.swarms.pop(handle, None)

    def removed(self) -> None:
        self._gone.set()

    def prioritize(self, pieces: Iterable[int], priority: int) -> None:
        pairs = [(piece, priority) for piece in pieces]
        if pairs:
            self.handle.prioritize_pieces(pairs)

    def read_piece(self, piece: int) -> None:
        self.handle.read_piece(piece)

    def flush(self) -> None:
        self.handle.flush_cache()

    def connect(self, peer: Peer) -> None:
        # A peer that a tracker names has its failure count wound back: it is tried at once.
        if self._handle is not None and peer not in self._banned:
            self._handle.connect_peer(peer, lt.peer_info.tracker)

    def banned(self, peer: Peer) -> None:
        if self.torrent.broken:
            return  # what our own disk lost may look like wrong bytes: no peer is to blame
        log.warning("peer %s sent wrong bytes and is dropped", format_peer(peer))
        self._banned.add(peer)
        self.torrent.peers.on_banned(peer)

    def take_piece(self, alert: lt.torrent_alert) -> bool:
        """Handle the alerts of which there are many; tell whether it was one of them."""
        match alert:
            case lt.block_finished_alert():
                layout = self.torrent.layout
                if layout is not None:
                    left = layout.piece_size(alert.piece_index) - alert.block_index * BLOCK_SIZE
                    self.torrent.peers.on_received(alert.ip, min(left, BLOCK_SIZE))
            case lt.piece_finished_alert():
                self.torrent.on_piece_arrived(alert.piece_index)
            case lt.read_piece_alert() if not alert.error.value():
                self.torrent.on_piece_read(alert.piece, alert.buffer)
            case lt.read_piece_alert() if _is_system(alert.error):
                error = _storage_error(alert.error, f"cannot read piece {alert.piece}")
                self.torrent.on_storage_error(error)
            case lt.read_piece_alert():
                self.torrent.on_read_failed(alert.piece)
            case lt.cache_flushed_alert():
                self.torrent.on_flushed()
            case _:
                return False
        return True

    def add_sources(self, sources: Sources) -> None:
        for url in sources.trackers:
            self.handle.add_tracker({"url": url})
        for url in sources.web_seeds:
            self.handle.add_url_seed(url)

    def here(self) -> list[bool]:
        return [] if self._handle is None else list(self._handle.status().pieces)

    def info(self) -> bytes | None:
        """The bencoded info dictionary, once libtorrent has it."""
        if self._handle is None:
            return None
        metadata = self._handle.status().torrent_file
        return None if metadata is None else metadata.info_section()

    def traffic(self) -> Traffic:
        status = self.handle.status(0)
        received = self.torrent.peers.received
        peers = {
            address: PeerStatistics(format_peer(address), False, count)
            for address, count in received.items()
        }
        for info in self.handle.get_peer_info():
            peers[info.ip] = PeerStatistics(
                format_peer(info.ip),
                not info.flags & (lt.peer_info.connecting | lt.peer_info.handshake),
                received[info.ip],
                info.total_upload,
                info.payload_down_speed,
                info.payload_up_speed,
            )
        return Traffic(
            status.total_payload_download,
            status.total_payload_upload,
            status.download_payload_rate,
            status.upload_payload_rate,
            tuple(peers.values()),
        )


class Engine:
    """All torrents of one store. Made by `open_engine`.

    Attributes:
        settings: as given.
    """

    def __init__(
        self, settings: EngineSettings, store_dir: Path, on_stall: Callable[[Torrent], None]
    ) -> None:
        self.settings = settings
        self._wanted = parse_listen(settings.listen)
        self._ports: dict[tuple[str, int], int] = {}
        self._store = store_dir
        self._on_stall = on_stall
        self._torrents: dict[bytes, Torrent] = {}
        self._adding = trio.Lock()
        self._nursery: trio.Nursery
        self._listen_change = trio.Event()
        self._listen_error: P2pcloopError | None = None
        self._totals: list[Callable[[dict[str, int]], None]] = []
        self.swarms: dict[lt.torrent_handle, _Swarm] = {}
        values: Any = session_settings(settings, self._wanted) | {"alert_mask": _ALERTS}
        params = lt.session_params(values)
        # No cache of its own: what is written is in the file at once, and in the kernel's cache.
        # Against the default back end it took less CPU and answered demand as soon or sooner.
        params.disk_io_constructor = "posix_disk_io_constructor"
        self.session = lt.session(params)
        everybody = lt.ip_filter()
        limited = 1 << lt.session.global_peer_class_id
        everybody.add_rule("0.0.0.0", "255.255.255.255", limited)  # noqa: S104  no socket
        everybody.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", limited)
        self.session.set_peer_class_filter(everybody)

    # --- what callers use -------------------------------------------------------------------

    @property
    def listen_ports(self) -> list[tuple[str, int]]:
        """(host, port) for each item of `settings.listen`, in that order."""
        return [(host, self._ports[host, port]) for host, port in self._wanted]

    @property
    def torrents(self) -> tuple[Torrent, ...]:
        """In the order in which they were added."""
        return tuple(self._torrents.values())

    def get(self, info_hash: bytes) -> Torrent | None:
        """The torrent, if it was added."""
        return self._torrents.get(info_hash)

    async def add(
        self,
        info_hash: bytes,
        *,
        peers: Iterable[Peer] = (),
        trackers: Iterable[str] = (),
        web_seeds: Iterable[str] = (),
    ) -> Torrent:
        """Have a torrent, and look for it in these places too. Nothing is fetched by this.

        Raises:
            StorageError: the store cannot be read or written.
        """
        sources = Sources(tuple(peers), tuple(trackers), tuple(web_seeds))
        async with self._adding:
            torrent = self._torrents.get(info_hash)
            if torrent is None:
                return await self._add(info_hash, sources)
        await torrent.add_sources(sources)
        return torrent

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
        self, staging: Path, progress: Callable[[int, int], None] | None = None
    ) -> Torrent:
        """Make a torrent of what lies in `staging`/data and seed it.

        The same content gives the same info hash. `staging`, on the store's file system, becomes
        the torrent's directory. Files in it may be symbolic links: what they lead to is read and
        never written.

        Args:
            progress: called from a worker thread with (bytes hashed, bytes in all).

        Raises:
            FormatError: there is nothing in it, or it cannot be a torrent.
            StorageError: the disk refused.
        """
        report = progress or (lambda _done, _total: None)
        report = progress or (lambda _done, _total: None)
        info_hash = await trio.to_thread.run_sync(make_torrent, staging, report)
        async with self._adding:
            known = self._torrents.get(info_hash)
            if known is not None and known.usable():
                await trio.to_thread.run_sync(discard, staging)
                return known
            move = partial(move_into_place, staging, self._store / info_hash.hex())
            if known is None:
                await trio.to_thread.run_sync(move)
                return await self._add(info_hash, Sources())
            await known.replace(move)
            return known

    async def statistics(self) -> EngineStatistics:
        """What the session does and did."""
        totals: dict[str, int] = {}
        arrived = trio.Event()

        def take(values: dict[str, int]) -> None:
            totals.update(values)
            arrived.set()

        self._totals.append(take)
        self.session.post_session_stats()
        await arrived.wait()
        torrents = tuple(
            TorrentStatistics(
                torrent.info_hash,
                layout.name if layout else None,
                layout.total_size if layout else None,
                torrent.have_bytes,
                torrent.traffic(),
            )
            for torrent in self.torrents
            for layout in (torrent.layout,)
        )
        return EngineStatistics(
            torrents,
            totals["net.recv_bytes"] + totals["net.recv_ip_overhead_bytes"],
            totals["net.sent_bytes"] + totals["net.sent_ip_overhead_bytes"],
        )

    # --- inside -----------------------------------------------------------------------------

    async def _add(self, info_hash: bytes, sources: Sources) -> Torrent:
        record = Record(self._store / info_hash.hex())
        await trio.to_thread.run_sync(record.create)
        swarm = _Swarm(self, info_hash, record.data)
        torrent = Torrent(info_hash, record, swarm, lt.bdecode, self._on_stall)
        swarm.torrent = torrent
        await torrent.start(sources)
        self._torrents[info_hash] = torrent
        self._nursery.start_soon(torrent.run)
        return torrent

    async def open(self) -> None:
        """Wait until the sockets listen."""
        with trio.move_on_after(LISTEN_SECONDS):
            while len(self._ports) < len(self._wanted) and self._listen_error is None:
                await self._listen_change.wait()
        if self._listen_error is not None:
            raise self._listen_error
        if len(self._ports) < len(self._wanted):
            raise UsageError(f"cannot listen on {', '.join(self.settings.listen)}")

    def serve(self, nursery: trio.Nursery) -> None:
        """Run the torrents' tasks in a nursery from now on."""
        self._nursery = nursery

    async def close(self) -> None:
        """Make durable what has arrived and leave all swarms."""
        async with trio.open_nursery() as nursery:
            for torrent in self.torrents:
                nursery.start_soon(_finish, torrent)

    async def pump(self) -> None:
        """Hand alerts to those whom they concern, for ever."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            self.session.set_alert_fd(theirs.fileno())
            try:
                while True:
                    for alert in self.session.pop_alerts():
                        self._dispatch(alert)
                    await trio.lowlevel.wait_readable(ours)
                    ours.recv(4096)
            finally:
                self.session.set_alert_fd(-1)

    def _dispatch(self, alert: lt.alert) -> None:
        if isinstance(alert, lt.torrent_alert):
            swarm = self.swarms.get(alert.handle)
            if swarm is not None and not swarm.take_piece(alert):
                self._take_change(swarm, alert)
            return
        match alert:
            case lt.listen_succeeded_alert():
                self._on_listening(alert)
            case lt.listen_failed_alert():
                kind = BusyError if alert.error.value() == errno.EADDRINUSE else UsageError
                where = format_peer((alert.address, alert.port))
                message = f"cannot listen on {where}: {alert.error.message()}"
                self._listen_error = kind(message, hint="choose another address or port")
                self._listening_changed()
            case lt.alerts_dropped_alert():
                log.warning("libtorrent's news were lost: every torrent is looked at again")
                for swarm in list(self.swarms.values()):
                    self._check_metadata(swarm)
                    swarm.torrent.on_checked()
            case lt.session_stats_alert():
                waiting, self._totals = self._totals, []
                for take in waiting:
                    take(dict(alert.values))

    def _take_change(self, swarm: _Swarm, alert: lt.torrent_alert) -> None:
        match alert:
            case lt.metadata_received_alert():
                self._check_metadata(swarm)
            case lt.torrent_checked_alert():
                swarm.torrent.on_checked()
            case lt.file_error_alert():
                error = _storage_error(alert.error, f"cannot use {alert.filename()}")
                swarm.torrent.on_storage_error(error)
            case lt.torrent_removed_alert():
                swarm.removed()
            case lt.peer_connect_alert():
                nodelay.connected(alert.ip)
                swarm.torrent.peers.on_connected(alert.ip)
            case lt.peer_disconnected_alert():
                swarm.torrent.peers.on_disconnected(alert.ip, alert.error.message())
            case lt.peer_ban_alert():
                swarm.banned(alert.ip)

    def _on_listening(self, alert: lt.listen_succeeded_alert) -> None:
        if alert.sock_type != lt.listen_succeeded_alert_socket_type_t.tcp:
            return
        if not nodelay.listening(alert.port):
            log.warning("TCP_NODELAY could not be set on port %d", alert.port)
        for host, port in self._wanted:
            if (host, port) not in self._ports and listens_for(host, port, alert.endpoint):
                self._ports[host, port] = alert.port
                break
        self._listening_changed()

    def _listening_changed(self) -> None:
        self._listen_change.set()
        self._listen_change = trio.Event()

    def _check_metadata(self, swarm: _Swarm) -> None:
        info = swarm.info()
        if info is not None and swarm.torrent.layout is None:
            self._nursery.start_soon(swarm.torrent.on_metadata, info)


@asynccontextmanager
async def open_engine(
    settings: EngineSettings,
    store_dir: Path,
    on_stall: Callable[[Torrent], None] | None = None,
) -> AsyncIterator[Engine]:
    """Run an engine on a store (the home's `torrents`) while the context lasts.

    Leaving the context makes durable what has arrived, and takes 15 s at most.

    Args:
        on_stall: called for a torrent every 10 s during which somebody waited and nothing came.

    Raises:
        BusyError: a port is taken.
        UsageError: it cannot listen where it was told to.
    """
    engine = Engine(settings, store_dir, on_stall or (lambda _torrent: None))
    pump_scope = trio.CancelScope(shield=True)

    async def pump() -> None:
        with pump_scope:
            await engine.pump()

    try:
        async with trio.open_nursery() as pumping:
            pumping.start_soon(pump)
            try:
                await engine.open()
                async with trio.open_nursery() as nursery:
                    engine.serve(nursery)
                    yield engine
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                    await engine.close()
                pump_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from None
    finally:
        del engine.session  # the last reference: it ends here, and its ports are free again


def _only(error: BaseException) -> BaseException:
    """What a group holds, where it is one exception: the nurseries inside are our own affair."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _finish(torrent: Torrent) -> None:
    await torrent.save()
    await torrent.stop()


def _is_system(error: lt.error_code) -> bool:
    """Whether its value is an errno."""
    return error.category().name() in ("system", "generic")


def _storage_error(error: lt.error_code, what: str) -> StorageError:
    number = error.value() if _is_system(error) else errno.EIO
    return StorageError(f"{what}: {error.message()}", errno=number)
