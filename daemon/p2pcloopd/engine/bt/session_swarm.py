"""One torrent in libtorrent's session, and what libtorrent tells of it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import libtorrent as lt
import trio

from p2pcloop.errors import StorageError, storage_error
from p2pcloop.formats.link import format_peer
from p2pcloop.formats.mirror import build_metainfo
from p2pcloop.store.have import MAX_PIECES
from p2pcloop.store.in_place import HeldFile
from p2pcloop.words import tr
from p2pcloopd.engine.bt import nodelay
from p2pcloopd.engine.bt.blame import Blame
from p2pcloopd.engine.bt.session import CLOSE_SECONDS, Session
from p2pcloopd.engine.bt.settings import FINGERPRINT
from p2pcloopd.engine.disk.record import Peer, Sources
from p2pcloopd.engine.fetch.peers import is_address
from p2pcloopd.engine.fetch.swarm import Others, PeerStatistics, Priority, Traffic
from p2pcloopd.engine.torrent import Torrent

log = logging.getLogger(__name__)

BLOCK_SIZE = 1 << 14
OURS = FINGERPRINT[:3].encode()  # of whatever version

_NOT_THERE = lt.peer_info.connecting | lt.peer_info.handshake
_NOT_OTHERS = lt.peer_info.seed | _NOT_THERE
_PEER_BANNED = ("libtorrent", 91)  # errors::peer_banned (error_code.hpp): said by smart_ban


class SessionSwarm:
    """One torrent in libtorrent's session (p2pcloopd.engine.fetch.swarm.Swarm)."""

    def __init__(self, session: Session, info_hash: bytes, save_path: Path) -> None:
        self._session = session
        self.info_hash = info_hash
        self._save_path = save_path
        self._handle: lt.torrent_handle | None = None
        self._gone = trio.Event()
        self._without: frozenset[str] = frozenset()
        self._held: Mapping[int, HeldFile] = {}
        self._nursery: trio.Nursery
        self.torrent: Torrent
        self._sent = 0
        self._counted = -1

    def attach(self, torrent: Torrent, nursery: trio.Nursery) -> None:
        """Bring libtorrent's news to a torrent; what must wait becomes a task of `nursery`."""
        self.torrent = torrent
        self._nursery = nursery

    @property
    def handle(self) -> lt.torrent_handle:
        assert self._handle is not None, "the torrent is not in the session"
        return self._handle

    def start(
        self,
        info: bytes | None,
        have: list[bool] | None,
        sources: Sources,
        held: Mapping[int, HeldFile],
    ) -> None:
        self._public = sources.public
        self._without = frozenset()
        self._trackers: set[str] = set()
        self._held = held  # open until libtorrent lets go of the torrent
        self._gone = trio.Event()
        self._blame = Blame(self.torrent.peers)
        self._sent, self._counted = 0, self.torrent.peers.connections  # nothing crossed yet
        self._handle = self._session.lt.add_torrent(self._parameters(info, have, sources, held))
        self._session.swarms[self._handle] = self
        if self._public:
            self._add_trackers(self._session.settings.announce_trackers)

    def _parameters(
        self,
        info: bytes | None,
        have: list[bool] | None,
        sources: Sources,
        held: Mapping[int, HeldFile],
    ) -> lt.add_torrent_params:
        """What libtorrent is told of the torrent when it is joined: see `Swarm.start`."""
        params = lt.add_torrent_params()
        # The binding takes text in UTF-8, or bytes as they are: a path may be none.
        params.save_path = os.fsencode(self._save_path)  # type: ignore[assignment]  # its stub errs
        params.flags = lt.torrent_flags.update_subscribe
        if not self._session.settings.pex:
            params.flags |= lt.torrent_flags.disable_pex
        # Both mean announcing; who only looks is told all the same (`look_up`, and LSD's news).
        if not sources.public:
            params.flags |= lt.torrent_flags.disable_dht | lt.torrent_flags.disable_lsd
        # These are connected to at once, others at the next full second.
        banned = self.torrent.peers.banned
        params.peers = [p for p in sources.peers if is_address(p[0]) and p not in banned]
        params.banned_peers = list(banned)
        pieces = MAX_PIECES  # cut to the true number when the metadata comes
        if info is None:
            params.info_hashes = lt.info_hash_t(lt.sha1_hash(self.info_hash))
        else:
            params.ti = lt.torrent_info(build_metainfo(info))
            pieces = params.ti.num_pieces()
        if have is None:
            # libtorrent compares each piece with its hash before it sends the first of it.
            params.flags |= lt.torrent_flags.seed_mode
        else:
            params.piece_priorities = [0] * pieces
            params.have_pieces = have
        if held:
            # Whatever happens to a file that lies elsewhere, it is never written.
            params.flags |= lt.torrent_flags.upload_mode
            params.renamed_files = {number: file.link for number, file in held.items()}
        return params

    async def stop(self) -> None:
        if self._handle is None:
            return
        self._count({})
        handle, self._handle = self._handle, None
        self._session.lt.remove_torrent(handle)
        with trio.move_on_after(CLOSE_SECONDS):
            await self._gone.wait()
        self._session.swarms.pop(handle, None)

    def prioritize(self, pieces: Iterable[int], priority: Priority) -> None:
        pairs = [(piece, int(priority)) for piece in pieces]
        if pairs and self._handle is not None:
            self._session.end_game.lapse()
            self.handle.prioritize_pieces(pairs)

    def insist(self) -> None:
        # Where all peers send, what is late is queued behind what others asked for: to ask for it
        # twice would make it later.
        if any(
            info.download_queue_length and self.torrent.peers.is_silent(info.ip)
            for info in self.handle.get_peer_info()
        ):
            self._session.end_game.insist(self.torrent.tuning.end_game)

    def others(self) -> Others:
        peers = [info for info in self.handle.get_peer_info() if not info.flags & _NOT_OTHERS]
        hosts = tuple(info.ip[0] for info in peers)
        return Others(peers[0].local_endpoint()[0], hosts) if peers else Others()

    def copies(self) -> list[int]:
        seeds = sum(bool(info.flags & lt.peer_info.seed) for info in self.handle.get_peer_info())
        return [max(0, count - seeds) for count in self.handle.piece_availability()]

    def crowd(self, *, on: bool, without: frozenset[str]) -> None:
        self._session.limits.of(self.info_hash, on=on, without=without)
        if self._handle is None:
            return
        before, self._without = self._without, without
        if bool(before) != bool(without):
            # The filter is the session's; of other torrents the same host stays a peer.
            change = self.handle.set_flags if without else self.handle.unset_flags
            change(lt.torrent_flags.apply_ip_filter)

    def foreign(self) -> bool:
        if self._handle is None:
            return False
        there = [info for info in self._handle.get_peer_info() if not info.flags & _NOT_THERE]
        return bool(there) and not any(info.pid.to_bytes().startswith(OURS) for info in there)

    def requested(self) -> set[int]:
        if self._handle is None:
            return set()
        # A piece leaves the queue and is told of in one step of libtorrent's thread, so the news
        # that are there after the look leave no gap.
        queue = self._handle.get_download_queue()
        self._session.hear()
        return {
            part["piece_index"]
            for part in queue
            if any(block["state"] for block in part["blocks"])  # 0: block_state_t::none
        }

    def add_piece(self, piece: int, data: bytes) -> None:
        if self._handle is not None:
            self._handle.add_piece(piece, data, 0)

    def read_piece(self, piece: int) -> None:
        self.handle.read_piece(piece)

    def flush(self) -> None:
        self.handle.flush_cache()

    def connect(self, peer: Peer) -> None:
        # A peer that a tracker names has its failure count wound back: it is tried at once.
        if self._handle is not None and peer not in self.torrent.peers.banned:
            self._handle.connect_peer(peer, lt.peer_info.tracker)

    def hurry(self) -> None:
        # libtorrent connects once a second, but at once for a torrent that goes on after a pause
        # (torrent.cpp, `do_connect_boost`).
        if self._handle is not None:
            self._handle.pause()
            self._handle.resume()

    def add_sources(self, sources: Sources) -> None:
        if sources.public and not self._public:
            self._public = True
            self.handle.unset_flags(lt.torrent_flags.disable_dht | lt.torrent_flags.disable_lsd)
            self._add_trackers(self._session.settings.announce_trackers)
            self.announce()

    def look_up(self) -> None:
        if self._handle is None:
            return
        settings = self._session.settings
        if settings.trackers:
            self._add_trackers(self.torrent.peers.sources.trackers)
        if settings.dht:
            self._session.lt.dht_get_peers(lt.sha1_hash(self.info_hash))
        for peer in self._session.neighbours:
            self.connect(peer)

    def announce(self) -> None:
        if self._handle is not None and self._public:
            self._handle.force_dht_announce()

    def _add_trackers(self, urls: Iterable[str]) -> None:
        for url in urls:
            if url not in self._trackers:
                self._trackers.add(url)
                self._nursery.start_soon(self._add_tracker, url, self.handle)

    async def _add_tracker(self, url: str, handle: lt.torrent_handle) -> None:
        """Name a tracker, to which libtorrent announces at once and as long as it is joined.

        Not before its name is found: libtorrent looks names up one after another, so a dead one
        would delay all other trackers.
        """
        host = urlsplit(url).hostname or ""
        while self._handle is handle:
            try:
                await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as err:
                # Not the URL, whose path may be a user's own.
                log.warning("a tracker of %s: the name is not known: %s", host, err)
                await trio.sleep(self.torrent.tuning.tracker_retry)
                continue
            if self._handle is handle:
                handle.add_tracker({"url": url})
            return

    def here(self) -> list[bool]:
        return [] if self._handle is None else list(self._handle.status().pieces)

    def traffic(self) -> Traffic:
        peers = self.torrent.peers
        told = {
            address: PeerStatistics(format_peer(address), False, count)
            for address, count in peers.received.items()
        }
        up_rate = 0
        # Each question waits for libtorrent's thread; a node has a thousand torrents at rest.
        quiet = not (peers.connected or peers.wanted)
        if not quiet or peers.connections != self._counted:
            up_rate = self._count(told)
            self._counted = peers.connections if quiet else -1
        # libtorrent counts some of what `add_piece` gives it as received.
        other = peers.traffic()
        return Traffic(
            other.payload_received,
            self._sent,
            sum(peer.down_rate for peer in told.values()) + other.down_rate,
            0 if quiet else up_rate,
            tuple(told.values()),
            other.servers,
        )

    def _count(self, told: dict[Peer, PeerStatistics]) -> int:
        """Ask libtorrent what was transferred, and of its peers; return the rate of sending."""
        status = self.handle.status(0)
        if self.torrent.layout is not None:
            self.torrent.store.received.on_redundant(status.total_redundant_bytes)
        self._sent = status.total_payload_upload
        for info in self.handle.get_peer_info():
            told[info.ip] = PeerStatistics(
                format_peer(info.ip),
                not info.flags & _NOT_THERE,
                self.torrent.peers.received[info.ip],
                info.total_upload,
                info.payload_down_speed,
                info.payload_up_speed,
            )
        return int(status.upload_payload_rate)

    # --- what libtorrent tells --------------------------------------------------------------

    def take(self, alert: lt.torrent_alert) -> None:
        """Handle an alert."""
        if not self._take_piece(alert):
            self._take_change(alert)

    def look_again(self) -> None:
        """Compare notes with libtorrent: some of its news were lost."""
        self._check_metadata()
        self.torrent.fetcher.on_checked()

    def _take_piece(self, alert: lt.torrent_alert) -> bool:
        """Handle the alerts of which there are many; tell whether it was one of them."""
        match alert:
            case lt.block_finished_alert() if not alert.ip[1]:
                pass  # of `add_piece`: no peer sent it
            case lt.block_finished_alert():
                layout = self.torrent.layout
                if layout is not None:
                    start, size = layout.range_of(alert.piece_index)
                    skip = alert.block_index * BLOCK_SIZE
                    length = min(size - skip, BLOCK_SIZE)
                    self.torrent.peers.on_received(alert.ip, length)
                    store, piece = self.torrent.store, alert.piece_index
                    store.received.on_block(piece, alert.block_index, start + skip, length)
                    store.senders.note(piece, piece, alert.ip)
                self._blame.sent(alert.piece_index, alert.pid.to_bytes())
            case lt.block_uploaded_alert():
                self.torrent.audit.sent(alert.piece_index)
            case lt.piece_finished_alert():
                self._blame.passed(alert.piece_index)
                self.torrent.fetcher.on_piece_arrived(alert.piece_index)
            case lt.read_piece_alert() if not alert.error.value():
                self.torrent.fetcher.on_piece_read(alert.piece, alert.buffer)
            case lt.read_piece_alert() if _is_system(alert.error):
                error = _storage_error(
                    alert.error, tr("cannot read piece {piece}", piece=alert.piece)
                )
                self.torrent.saver.on_storage_error(error)
            case lt.read_piece_alert():
                self.torrent.fetcher.on_read_failed(alert.piece)
            case lt.cache_flushed_alert():
                self.torrent.store.on_flushed()
            case _:
                return False
        return True

    def _take_change(self, alert: lt.torrent_alert) -> None:
        """Handle the other ones."""
        match alert:
            case lt.metadata_received_alert():
                self._check_metadata()
            case lt.torrent_checked_alert():
                self.torrent.fetcher.on_checked()
            case lt.file_error_alert():
                error = _storage_error(alert.error, tr("cannot use {path}", path=alert.filename()))
                self.torrent.on_storage_error(error)
            case lt.torrent_removed_alert():
                self._held = {}
                self._gone.set()
            case lt.peer_connect_alert():
                nodelay.connected(alert.ip)
                self.torrent.peers.on_connected(alert.ip)
            case lt.peer_disconnected_alert():
                self.torrent.peers.on_disconnected(alert.ip, self._why(alert))
                code = (alert.error.category().name(), alert.error.value())
                if code == _PEER_BANNED and not self.torrent.saver.broken:
                    self._blame.banned_by_host(alert.ip)
            # What our own disk lost may look like wrong bytes: no peer is to blame then.
            case lt.peer_ban_alert() if not self.torrent.saver.broken:
                self._blame.banned(alert.pid.to_bytes(), alert.ip)
            case lt.hash_failed_alert():
                self._blame.failed(alert.piece_index)
                self.torrent.store.received.on_piece(alert.piece_index)
                self.torrent.on_hash_failed(alert.piece_index)

    def _why(self, alert: lt.peer_disconnected_alert) -> str:
        if alert.ip[0] in self._without:
            return tr("asked over HTTP, while others fetch the same")
        return alert.error.message()

    def _check_metadata(self) -> None:
        """Hand over the bencoded info dictionary once libtorrent has it."""
        ended = self._nursery.cancel_scope.cancel_called
        if ended or self._handle is None or self.torrent.layout is not None:
            return
        status = self._handle.status()
        metadata = status.torrent_file
        if metadata is not None:
            self.torrent.store.received.on_metadata(status.total_redundant_bytes)
            self._nursery.start_soon(self.torrent.on_metadata, metadata.info_section())


def _is_system(error: lt.error_code) -> bool:
    """Whether its value is an errno."""
    return error.category().name() in ("system", "generic")


def _storage_error(error: lt.error_code, what: str) -> StorageError:
    if _is_system(error):
        return storage_error(what, OSError(error.value(), error.message()))
    return StorageError(
        tr("{what}: {message}", what=what, message=error.message()), errno=errno.EIO
    )
