"""libtorrent's session in trio, with no thread and no polling of ours.

The modules session*.py alone import libtorrent. libtorrent writes a byte into a socket when it has
something to tell; the pump takes all alerts and hands each to its torrent. A torrent that has to
know at once hears them before. An alert dies at the next `pop_alerts`, so what is needed is copied
out of it at once.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import libtorrent as lt
import trio

from p2pcloop.errors import BusyError, FormatError, UsageError
from p2pcloop.formats.link import format_peer
from p2pcloop.formats.mirror import build_metainfo
from p2pcloop.words import tr
from p2pcloopd.engine.bt import nodelay
from p2pcloopd.engine.bt.listening import Listening
from p2pcloopd.engine.bt.session_end_game import EndGame
from p2pcloopd.engine.bt.session_limits import PeerLimits
from p2pcloopd.engine.bt.settings import EngineSettings, session_settings
from p2pcloopd.engine.disk.record import Peer
from p2pcloopd.entry import plain_errors

log = logging.getLogger(__name__)

CLOSE_SECONDS = 15

_ALERTS = (
    lt.alert_category.error
    | lt.alert_category.status
    | lt.alert_category.storage
    | lt.alert_category.connect
    | lt.alert_category.peer
    | lt.alert_category.piece_progress
    | lt.alert_category.block_progress
    | lt.alert_category.upload
)


_DHT_ALERTS = lt.alert_category.dht | lt.alert_category.dht_operation


def _alerts(settings: EngineSettings) -> int:
    return _ALERTS | _DHT_ALERTS if settings.dht else _ALERTS


class Member(Protocol):
    """One torrent of the session, as its alerts reach it."""

    def take(self, alert: lt.torrent_alert) -> None:
        """Handle an alert."""

    @property
    def info_hash(self) -> bytes:
        """v1, 20 bytes."""

    def look_again(self) -> None:
        """Compare notes with libtorrent: some of its news were lost."""

    def announce(self) -> None:
        """Tell the DHT of it, if it is public: the DHT can be reached now."""

    def connect(self, peer: Peer) -> None:
        """Try a peer that may have it."""


class Session:
    """libtorrent's session: the sockets and all swarms. Made by `open_session`.

    Attributes:
        settings: what it was told about the network.
        lt: libtorrent's own object.
        listening: where peers reach it.
        swarms: whom the news of each handle concern, as long as libtorrent knows it.
        neighbours: peers on the local network, which may have any torrent.
        takers: are shown every alert that concerns no torrent.
        end_game: whether blocks are asked of more than one peer.
        crowd: whether peers are asked for little at once.
    """

    @staticmethod
    def decode(info: bytes) -> object:
        """Decode the info dictionary of a torrent from outside.

        Raises:
            FormatError: it is none, or libtorrent would take another one out of these bytes.
        """
        try:
            if lt.torrent_info(build_metainfo(info)).info_section() == info:
                return lt.bdecode(info)
        except RuntimeError as err:
            raise FormatError(
                tr("the metadata of a torrent cannot be read: {err}", err=err)
            ) from err
        raise FormatError("the metadata of a torrent has something behind its end")

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.listening = Listening(settings.listen)
        self.swarms: dict[lt.torrent_handle, Member] = {}
        self.neighbours: set[Peer] = set()
        self.takers: list[Callable[[lt.alert], None]] = []
        self._totals: list[Callable[[dict[str, int]], None]] = []
        self._hearing = False
        values: Any = session_settings(settings) | {"alert_mask": _alerts(settings)}
        params = lt.session_params(values)
        # No cache of its own: what is written is in the file at once, and in the kernel's cache.
        # Against the default back end it took less CPU and answered demand as soon or sooner.
        params.disk_io_constructor = "posix_disk_io_constructor"
        self.lt = lt.session(params)
        all_hosts = lt.ip_filter()
        limited = 1 << lt.session.global_peer_class_id
        all_hosts.add_rule("0.0.0.0", "255.255.255.255", limited)  # noqa: S104  no socket
        all_hosts.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", limited)
        self.lt.set_peer_class_filter(all_hosts)
        self.end_game = EndGame(self.lt)
        self.limits = PeerLimits(self.lt)

    def set_rates(self, download: int, upload: int) -> None:
        """Limit what all peers together send and get, in bytes a second; 0: no limit."""
        self.lt.apply_settings({"download_rate_limit": download, "upload_rate_limit": upload})

    def announce(self) -> None:
        """Tell the DHT of every public torrent: it can be reached now."""
        for swarm in list(self.swarms.values()):
            swarm.announce()

    def found(self, info_hash: bytes, peers: Iterable[Peer]) -> None:
        """Try peers that may have a torrent."""
        for swarm in list(self.swarms.values()):
            if swarm.info_hash == info_hash:
                for peer in peers:
                    swarm.connect(peer)

    async def totals(self) -> dict[str, int]:
        """libtorrent's counters since the start, by their names."""
        totals: dict[str, int] = {}
        arrived = trio.Event()

        def take(values: dict[str, int]) -> None:
            totals.update(values)
            arrived.set()

        self._totals.append(take)
        self.lt.post_session_stats()
        await arrived.wait()
        return totals

    async def pump(self) -> None:
        """Hand alerts to those whom they concern, for ever."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            self.lt.set_alert_fd(theirs.fileno())
            try:
                while True:
                    self.hear()
                    await trio.lowlevel.wait_readable(ours)
                    ours.recv(4096)
            finally:
                self.lt.set_alert_fd(-1)

    def hear(self) -> None:
        """Hand over the alerts that are there by now."""
        if self._hearing:
            return  # one who is told asks for more: that dies with the alerts which are left
        self._hearing = True
        try:
            for alert in self.lt.pop_alerts():
                self._dispatch(alert)
        finally:
            self._hearing = False

    def _dispatch(self, alert: lt.alert) -> None:
        if isinstance(alert, lt.torrent_alert):
            swarm = self.swarms.get(alert.handle)
            if swarm is not None:
                swarm.take(alert)
            return
        match alert:
            case lt.listen_succeeded_alert():
                self._on_listening(alert)
            case lt.listen_failed_alert():
                kind = BusyError if alert.error.value() == errno.EADDRINUSE else UsageError
                where = format_peer((alert.address, alert.port))
                message = tr(
                    "cannot listen on {where}: {message}",
                    where=where,
                    message=alert.error.message(),
                )
                self.listening.fail(kind(message))
            case lt.alerts_dropped_alert():
                log.warning("libtorrent's news were lost: every torrent is looked at again")
                for swarm in list(self.swarms.values()):
                    swarm.look_again()
            case lt.session_stats_alert():
                waiting, self._totals = self._totals, []
                for take in waiting:
                    take(dict(alert.values))
            case _:
                for taker in self.takers:
                    taker(alert)

    def _on_listening(self, alert: lt.listen_succeeded_alert) -> None:
        if alert.sock_type != lt.listen_succeeded_alert_socket_type_t.tcp:
            return
        if not nodelay.listening(alert.port):
            log.warning("TCP_NODELAY could not be set on port %d", alert.port)
        self.listening.on_bound(alert.endpoint)


@asynccontextmanager
async def open_session(settings: EngineSettings) -> AsyncIterator[Session]:
    """Run a session while the context lasts; its sockets listen.

    Raises:
        BusyError: a port is taken.
        UsageError: it cannot listen where it was told to.
    """
    session = Session(settings)
    pump_scope = trio.CancelScope(shield=True)

    async def pump() -> None:
        with pump_scope:
            await session.pump()

    try:
        with plain_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump)
                try:
                    await session.listening.wait()
                    yield session
                finally:
                    pump_scope.cancel()
    finally:
        # The last references: it ends here, and its ports are free again.
        del session.end_game, session.limits, session.lt
