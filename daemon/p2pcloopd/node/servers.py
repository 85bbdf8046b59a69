"""The HTTP servers of each layer: its mirrors and web seeds.

Metadata is fetched whole, 20 bytes a piece, and a reader needs but a few kilobytes before the first
block: header, map, a page of the table, a chunk. So a mirror is asked for exactly these, and the
metadata is fetched afterwards, once the first chunk was answered. Nothing of what a server sends is
verified here: a reader compares every chunk with its SHA-256, the engine every piece with its hash.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import trio

from p2pcloop.errors import MismatchError, NotHereError, P2pcloopError, UnreachableError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.mirror import DispatchPath
from p2pcloop.units import format_size
from p2pcloop.words import tr
from p2pcloopd.engine.fetch.health import Silence
from p2pcloopd.engine.fetch.range_requests import Came, Dispatched
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.http.mirrors import MAX_WHOLE, MirrorReader, Mirrors
from p2pcloopd.http.wire import Wire
from p2pcloopd.tasks import first_success, run_while


@dataclass(slots=True, eq=False)
class LayerServers:
    """The HTTP servers of one layer (p2pcloopd.engine.fetch.range_requests.Servers).

    Attributes:
        wire: counts what arrives from all servers.
        mirrors: those that have it, or a part of it, and its metadata.
        web_seeds: those that have its content alone, all of it.
        whole: those of `mirrors` that are web seeds, too.
        disputed: manifests say different things of the layer, so that it cannot be told which of
            a server's bytes are whose: it is read by its torrent, which is not a matter of trust.
        refused: the bases of those whose bytes were wrong, and until when they are not known anew.
    """

    layer: LayerRef
    wire: Wire
    tuning: Tuning
    mirrors: list[MirrorReader] = field(default_factory=list)
    web_seeds: list[MirrorReader] = field(default_factory=list)
    whole: list[MirrorReader] = field(default_factory=list)
    refused: dict[str, float] = field(default_factory=dict)
    disputed: bool = False
    _hosts: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def servers(self) -> list[MirrorReader]:
        """All of them."""
        return [*self.mirrors, *self.web_seeds]

    @property
    def with_ranges(self) -> list[MirrorReader]:
        """Those that may be asked for ranges, some day."""
        every = [] if self.disputed else self.servers
        return [mirror for mirror in every if not mirror.whole_only]

    @property
    def with_files(self) -> list[MirrorReader]:
        """Those that may be asked for whole files alone, where these are small enough."""
        small = self.layer.index_length + self.layer.pack_length <= MAX_WHOLE
        every = self.servers if small and not self.disputed else []
        return [mirror for mirror in every if mirror.whole_only]

    @property
    def seeds(self) -> bool:
        """See `Servers.seeds`."""
        seeds = [*self.web_seeds, *self.whole]
        return any(mirror.usable and not mirror.whole_only for mirror in seeds)

    @property
    def rate(self) -> float | None:
        """See `Servers.rate`."""
        best = self._best()
        return None if best is None else best.rate

    @property
    def dispatches(self) -> bool:
        """See `Servers.dispatches`."""
        return bool(self.mirrors)

    def heard(self) -> int:
        """See `Servers.heard`: of all layers."""
        return self.wire.received

    def asking(self) -> bool:
        """See `Servers.asking`: of any layer."""
        return any(mirror.asked for mirror in self.servers)

    def ready_at(self) -> float:
        """See `Servers.ready_at`."""
        return min((mirror.not_before for mirror in self.with_ranges), default=math.inf)

    def whole_ready_at(self) -> float:
        """See `Servers.whole_ready_at`."""
        return min((mirror.not_before for mirror in self.with_files), default=math.inf)

    async def get(self, offset: int, length: int, *, spread: bool = False) -> Came:
        """See `Servers.get`."""
        error: P2pcloopError = NotHereError("no server can be asked")
        usable = [mirror for mirror in self.with_ranges if mirror.usable]
        if spread:
            usable.sort(key=lambda mirror: (mirror.asked, mirror.preference))
        else:
            usable = sorted(usable, key=_order)[:1]
        for mirror in usable:
            try:
                return await self._range(mirror, offset, length)
            except NotHereError as err:
                error = error if isinstance(error, UnreachableError) else err
            except P2pcloopError as err:
                error = UnreachableError(err.message, hint=err.hint)
        raise error

    async def get_first(self, offset: int, length: int) -> Came | None:
        """See `Servers.get_first`."""
        mirrors = sorted((m for m in self.with_ranges if m.usable), key=_order)

        async def ask(mirror: MirrorReader) -> Came:
            return await self._range(mirror, offset, length)

        return await first_success(mirrors, ask, self.tuning.first_stagger)

    async def _range(self, mirror: MirrorReader, offset: int, length: int) -> Came:
        data = await mirror.range(self.layer, offset, length)
        return Came(data, mirror.base, partial(self._refuse, mirror))

    async def get_whole(self, take: Callable[[Came], Awaitable[None]]) -> None:
        """See `Servers.get_whole`."""
        usable = [mirror for mirror in self.with_files if mirror.usable]
        if not usable:
            raise NotHereError("no server can be asked")
        mirror = min(usable, key=_order)
        refuse = partial(self._refuse, mirror)
        await mirror.whole(self.layer, lambda data: take(Came(data, mirror.base, refuse)))

    async def dispatch(self, pieces: Sequence[int], size: int) -> Dispatched | None:
        """See `Servers.dispatch`: of the server that answered last."""
        mirror = self._best()
        if mirror is None or mirror in self.web_seeds:
            raise NotHereError("no mirror can be asked")
        found = await mirror.dispatch(DispatchPath(self.layer.torrent, tuple(pieces)), size)
        if found is None:
            return None
        if mirror.base not in self._hosts:
            self._hosts[mirror.base] = await _hosts(mirror)
        piece, data = found
        came = Came(data, mirror.base, partial(self._refuse, mirror))
        return Dispatched(piece, came, self._hosts[mirror.base])

    async def info(self, *, alone: bool) -> bytes | None:
        """The bencoded info dictionary of the layer's torrent; None where no mirror gives it.

        Args:
            alone: there is no other source: try until a mirror has it.
        """
        stagger = self.tuning.first_stagger

        async def ask(mirror: MirrorReader) -> bytes:
            return await mirror.info(self.layer.torrent)

        while True:
            mirrors = sorted(self.mirrors, key=_order)
            work = partial(first_success, mirrors, ask, stagger)
            silence = Silence(self.heard, stagger)
            found = await (work() if alone else run_while(silence.run, partial(silence.ends, work)))
            if found is not None or not alone:
                return found
            await trio.sleep(self.tuning.metadata_retry)

    def begins_metadata(self, offset: int) -> bool:
        """See `Servers.begins_metadata`: with the first chunk."""
        return offset >= self.layer.index_length

    def trusts(self, mirror: MirrorReader) -> bool:
        """Whether a server that a command names may be asked: it did not lie of late."""
        until = self.refused.get(mirror.base)
        if until is not None and until <= trio.current_time():
            del self.refused[mirror.base]
            return True
        return until is None

    def _refuse(self, mirror: MirrorReader) -> None:
        """Ask a mirror for nothing of the layer any more."""
        if self.disputed:
            return  # what was asked for wrongly is no mirror's fault
        error = MismatchError(tr("{base} has wrong bytes of a layer", base=mirror.base))
        mirror.on_failure(error, of_content=True)
        self.refused[mirror.base] = trio.current_time() + self.tuning.refused
        for known in (self.mirrors, self.web_seeds, self.whole):
            if mirror in known:
                known.remove(mirror)

    def _best(self) -> MirrorReader | None:
        """The server that answered last, of those whose bytes are certain to be the layer's."""
        usable = [mirror for mirror in self.with_ranges if mirror.usable]
        return min(usable, key=_order, default=None)

    def faults(self) -> list[str]:
        """See `Servers.faults`; where nothing is wrong, who is awaited."""
        size = self.layer.index_length + self.layer.pack_length
        told = [tr("{base} (has wrong bytes of it)", base=base) for base in self.refused]
        for mirror in self.servers:
            error = (mirror.fault or "").removeprefix(mirror.base)
            if mirror.whole_only and size > MAX_WHOLE:
                error += tr(
                    "; a layer of {size} is not taken whole for a part of it (at most {max_whole}"
                    " are)",
                    size=format_size(size),
                    max_whole=format_size(MAX_WHOLE),
                )
            if error:
                told.append(f"{mirror.base} (" + error + ")")
        return told or [
            tr("{base} (asked, and not all has come)", base=mirror.base) for mirror in self.servers
        ]


class Layers:
    """The layers of which servers are known."""

    def __init__(self, wire: Wire, readers: Mirrors, tuning: Tuning = TUNING) -> None:
        """`wire` counts what crosses to and from mirrors."""
        self._wire = wire
        self._readers = readers
        self._tuning = tuning
        self._known: dict[bytes, LayerServers] = {}

    def know(
        self,
        layer: LayerRef,
        mirrors: Iterable[MirrorReader],
        web_seeds: Iterable[str] = (),
    ) -> LayerServers:
        """Know what a torrent is the layer of, and more mirrors and web seeds that may have it."""
        servers = self._known.get(layer.torrent)
        if servers is None:
            servers = LayerServers(layer, self._wire, self._tuning)
            self._known[layer.torrent] = servers
        elif servers.layer != layer:
            servers.disputed = True
        fresh = [mirror for mirror in mirrors if servers.trusts(mirror)]
        servers.mirrors += [mirror for mirror in fresh if mirror not in servers.mirrors]
        seeds = {f"{mirror.base}data/": mirror for mirror in servers.mirrors}
        for url in web_seeds:
            mirror = seeds.get(url) or self._readers.open_seed(url)
            known = servers.whole if url in seeds else servers.web_seeds
            if mirror not in known and servers.trusts(mirror):
                known.append(mirror)
        return servers

    def awaited(self, torrents: Iterable[Torrent]) -> set[str]:
        """The bases of all servers that may have what readers wait for now."""
        waiting = [torrent for torrent in torrents if torrent.peers.wanted]
        known = [self._known[t.info_hash] for t in waiting if t.info_hash in self._known]
        return {mirror.base for servers in known for mirror in servers.servers}

    def bases(self, layers: Iterable[LayerRef]) -> list[str]:
        """Where layers may be had: bases of mirrors, those that answered last first."""
        known = [self._known[each.torrent] for each in layers if each.torrent in self._known]
        mirrors = dict.fromkeys(mirror for servers in known for mirror in servers.mirrors)
        return [mirror.base for mirror in sorted(mirrors, key=_order)]


async def _hosts(mirror: MirrorReader) -> frozenset[str]:
    """The addresses of a mirror's host; none of a directory."""
    host = urlsplit(mirror.base).hostname
    if not host:
        return frozenset()
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    addresses = frozenset(str(address[0]) for *_, address in found)
    return frozenset(address for address in addresses if "%" not in address)  # a scope


def _order(mirror: MirrorReader) -> tuple[bool, float]:
    return not mirror.usable, mirror.preference
