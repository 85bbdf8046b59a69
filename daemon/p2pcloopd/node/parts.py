"""Exact reads: bytes of a layer from mirrors, without the pieces round them.

Metadata comes whole, 20 bytes a piece, and a reader needs but a few kilobytes before the first
block: header, map, a page of the table, a chunk. So a mirror is asked for exactly these, and the
metadata is got afterwards, once the first chunk was answered. Later, what a guest waits for is
asked for in the same way: the pieces round a chunk are twice as long as it. Nothing of this is
verified here: who reads compares every part with its SHA-256, and asks to heal what does not match.
That, and what others want at the same time, goes by the torrent. Parts are kept
(engine/provisional.py): what was read once is here, whoever is gone.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import trio

from p2pcloop.errors import MismatchError, NotHereError, P2pcloopError, UnreachableError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.mirror import HandoutPath
from p2pcloop.units import format_size
from p2pcloopd.engine.handout import Handed
from p2pcloopd.engine.http_pieces import Came, Servers
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.http.mirrors import MAX_WHOLE, MirrorReader, Mirrors
from p2pcloopd.http.wire import Wire

Result = TypeVar("Result")

STAGGER_SECONDS = 1.0
"""A mirror that has not answered for so long is not waited for alone: the next is asked, too."""

PATIENCE_SECONDS = 3.0
"""So long mirrors are asked alone; then the metadata is got, to go by the torrent."""

FOLLOW_SECONDS = 0.1
"""The metadata is got so long after the first chunk: what a reader wants next goes first."""

RETRY_SECONDS = 2.0

GUESS_SECONDS = 0.012
"""What takes longer is not brought on a guess: one in five is wrong, and a right one saves no more
than the pauses between two reads (docs/scheduling.md)."""

MAX_GIVEN = 1024
"""Parts of a layer of which it is remembered who gave them: a reader complains at once."""

_Key = tuple[int, int]
_Found = tuple[bytes, MirrorReader]


@dataclass(slots=True)
class _Early:
    """A layer, and who has it (p2pcloopd.engine.http_pieces.Servers).

    Attributes:
        mirrors: those that have it, or a part of it, and its metadata.
        web_seeds: those that have its content alone, all of it.
        whole: those of `mirrors` that are web seeds, too.
        disputed: manifests say different things of the layer, so that it cannot be told which of
            a mirror's bytes are whose: it is read by its torrent, which is not a matter of trust.
        refused: those whose bytes were wrong, and which are asked no more.
        given: from whom parts came, by offset and length.
        not_before: when the metadata may be asked for.
    """

    layer: LayerRef
    mirrors: list[MirrorReader] = field(default_factory=list)
    web_seeds: list[MirrorReader] = field(default_factory=list)
    whole: list[MirrorReader] = field(default_factory=list)
    refused: list[MirrorReader] = field(default_factory=list)
    given: dict[_Key, MirrorReader] = field(default_factory=dict)
    not_before: float = 0.0
    disputed: bool = False

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
        best = _best(self)
        return None if best is None else best.rate

    def ready_at(self) -> float:
        """See `Servers.ready_at`."""
        return min((mirror.not_before for mirror in self.with_ranges), default=math.inf)

    def whole_ready_at(self) -> float:
        """See `Servers.whole_ready_at`."""
        return min((mirror.not_before for mirror in self.with_files), default=math.inf)

    async def get(self, offset: int, length: int) -> Came:
        """See `Servers.get`: whoever is asked for least now, then whoever answered last."""
        error: P2pcloopError = NotHereError("no server can be asked")
        usable = [mirror for mirror in self.with_ranges if mirror.usable]
        for mirror in sorted(usable, key=lambda mirror: (mirror.asked, mirror.preference)):
            try:
                data = await mirror.range(self.layer, offset, length)
            except NotHereError as err:
                error = error if isinstance(error, UnreachableError) else err
            except P2pcloopError as err:
                error = UnreachableError(str(err), hint=err.hint)
            else:
                return Came(data, mirror.base, partial(_refuse, self, mirror))
        raise error

    async def get_whole(self, take: Callable[[Came], Awaitable[None]]) -> None:
        """See `Servers.get_whole`."""
        usable = [mirror for mirror in self.with_files if mirror.usable]
        if not usable:
            raise NotHereError("no server can be asked")
        mirror = min(usable, key=_order)
        refuse = partial(_refuse, self, mirror)
        await mirror.whole(self.layer, lambda data: take(Came(data, mirror.base, refuse)))

    def faults(self) -> list[str]:
        """See `Servers.faults`."""
        size = self.layer.index_length + self.layer.pack_length
        told = [f"{mirror.base} (has wrong bytes of it)" for mirror in self.refused]
        for mirror in self.servers:
            error = (mirror.fault or "").removeprefix(mirror.base)
            if mirror.whole_only and size > MAX_WHOLE:
                error += (
                    f"; a layer of {format_size(size)} is not taken whole for a part of it (at most"
                    f" {format_size(MAX_WHOLE)} are)"
                )
            if error:
                told.append(f"{mirror.base} ({error})")
        return told


class EarlyReads:
    """The layers that mirrors are known of."""

    def __init__(self, wire: Wire, readers: Mirrors) -> None:
        """`wire` counts what crosses to and from mirrors."""
        self._wire = wire
        self._readers = readers
        self._layers: dict[bytes, _Early] = {}
        self._hosts: dict[str, frozenset[str]] = {}

    def know(
        self,
        layer: LayerRef,
        mirrors: Iterable[MirrorReader],
        web_seeds: Iterable[str] = (),
    ) -> Servers:
        """Know what a torrent is the layer of, and more mirrors and web seeds that may have it."""
        early = self._layers.setdefault(layer.torrent, _Early(layer))
        if early.layer != layer:
            early.disputed = True
            early.given.clear()  # what was asked for wrongly is no mirror's fault
        early.mirrors += [mirror for mirror in mirrors if mirror not in early.mirrors]
        seeds = {f"{mirror.base}data/": mirror for mirror in early.mirrors}
        for url in web_seeds:
            mirror = seeds.get(url) or self._readers.open_seed(url)
            known = early.whole if url in seeds else early.web_seeds
            if mirror not in known:
                known.append(mirror)
        return early

    def awaited(self, torrents: Iterable[Torrent]) -> set[str]:
        """The bases of all servers that may have what readers wait for now."""
        waiting = [torrent for torrent in torrents if torrent.peers.wanted]
        known = [self._layers[t.info_hash] for t in waiting if t.info_hash in self._layers]
        return {mirror.base for early in known for mirror in early.servers}

    def bases(self, layers: Iterable[LayerRef]) -> list[str]:
        """Where layers may be had: bases of mirrors, those that answered last first."""
        known = [self._layers[each.torrent] for each in layers if each.torrent in self._layers]
        mirrors = dict.fromkeys(mirror for early in known for mirror in early.mirrors)
        return [mirror.base for mirror in sorted(mirrors, key=_order)]

    async def read(
        self, torrent: Torrent, offset: int, length: int, *, heal: bool = False, ahead: bool = False
    ) -> bytes | None:
        """Bytes of a layer, not verified; None where they are to be had by the torrent.

        Args:
            heal: what was answered here did not match its hash.
            ahead: nobody is kept waiting.
        """
        key = (offset, length)
        early = self._layers.get(torrent.info_hash)
        if heal:
            torrent.provisional.drop(offset, length)
            self._reject(early, key)
            return None
        stored = torrent.transfer.disk
        if stored is not None and stored.has(offset, length):
            return None
        if early is None:
            return await torrent.read_provisional(offset, length)
        with nullcontext() if ahead else torrent.transfer.demand.waiting():
            while (coming := torrent.provisional.claimed(offset, length)) is not None:
                await coming.wait()
            data = await torrent.read_provisional(offset, length)
            if data is None and not early.disputed:
                data = await self._bring_rest(torrent, early, key)
        if data is not None and offset >= early.layer.index_length:
            early.not_before = early.not_before or trio.current_time() + FOLLOW_SECONDS
            torrent.want_metadata()
        return data

    def is_cheap(self, info_hash: bytes, length: int) -> bool:
        """Whether so many bytes of a layer come soon enough to be brought on a guess."""
        early = self._layers.get(info_hash)
        mirror = None if early is None else _best(early)
        rate = None if mirror is None else mirror.rate
        return rate is None or length <= rate * GUESS_SECONDS

    async def direct(self, torrent: Torrent, offset: int, length: int) -> bytes | None:
        """Bytes of a layer from the mirror that answered last, not verified; None where it fails.

        For pieces that a reader waits for once the metadata is here (engine/direct.py).
        """
        early = self._layers.get(torrent.info_hash)
        found = None if early is None else await _ask_best(early, (offset, length))
        if found is None:
            return None
        data, mirror = found
        torrent.peers.on_http(mirror.base, len(data))
        return data

    async def handout(self, torrent: Torrent, pieces: Sequence[int], size: int) -> Handed | None:
        """One of these pieces of a layer from the mirror that answered last, not verified.

        For those who boot together (engine/handout.py).

        Args:
            size: bytes of a piece, at most.

        Returns:
            What came, or None where others got all of these just now.

        Raises:
            P2pcloopError: it hands out nothing, or there is none.
        """
        early = self._layers.get(torrent.info_hash)
        mirror = None if early is None else _best(early)
        if early is None or mirror is None or mirror in early.web_seeds:
            raise NotHereError("no mirror can be asked")
        found = await mirror.handout(HandoutPath(torrent.info_hash, tuple(pieces)), size)
        if found is not None:
            torrent.peers.on_http(mirror.base, len(found[1]))
        if mirror.base not in self._hosts:
            self._hosts[mirror.base] = await _hosts(mirror)
        refuse = partial(_refuse, early, mirror)
        return found and Handed(*found, hosts=self._hosts[mirror.base], refuse=refuse)

    async def info(self, info_hash: bytes, *, alone: bool) -> bytes | None:
        """The bencoded info dictionary of a layer's torrent; None where no mirror gives it.

        Args:
            alone: there is nobody else to ask: try until a mirror has it.
        """
        while (early := self._layers.get(info_hash)) is not None:
            await trio.sleep_until(early.not_before)
            mirrors = sorted(early.mirrors, key=_order)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    if not alone:
                        nursery.start_soon(self._give_up_in_silence, scope)
                    found = await _first(mirrors, lambda mirror: mirror.info(info_hash))
                    nursery.cancel_scope.cancel()
                if found is not None:
                    return found
            if not alone:
                break
            await trio.sleep(RETRY_SECONDS)
        return None

    async def _give_up_in_silence(self, scope: trio.CancelScope) -> None:
        """Cancel what goes on once nothing at all has come from any mirror for a while."""
        received = -1
        while received != self._wire.received:
            received = self._wire.received
            await trio.sleep(STAGGER_SECONDS)
        scope.cancel()

    def _reject(self, early: _Early | None, key: _Key) -> None:
        """Ask no more of the mirror that gave a part, or a part of it."""
        if early is None:
            return
        offset, length = key
        found = [at for at in early.given if at[0] < offset + length and offset < sum(at)]
        mirrors = {early.given.pop(at) for at in found}
        if len(mirrors) == 1:  # of several it cannot be told which
            _refuse(early, mirrors.pop())

    async def _bring_rest(self, torrent: Torrent, early: _Early, key: _Key) -> bytes | None:
        """Get what of a part is not here; None where it is to be had by the torrent."""
        gaps = torrent.provisional.gaps(*key)
        for gap in gaps:
            with torrent.provisional.claim(*gap):
                data = await self._bring(torrent, early, gap)
            if data is None:
                return None
        return data if gaps == [key] else await torrent.read_provisional(*key)

    async def _bring(self, torrent: Torrent, early: _Early, key: _Key) -> bytes | None:
        """Get a part, and keep it; None where it is to be had by the torrent."""
        if torrent.layout is None:
            found = await self._bring_first(torrent, early, key)
        elif key[1] <= torrent.provisional.room and torrent.direct.suits(*key):
            found = await self._bring_alone(torrent, early, key)
        else:
            return None
        if found is None:
            return None
        data, mirror = found
        early.given[key] = mirror
        torrent.peers.on_http(mirror.base, len(data))
        if len(early.given) > MAX_GIVEN:
            del early.given[next(iter(early.given))]
        torrent.peers.on_bytes(len(data))
        layout = torrent.layout
        piece_length = 0 if layout is None else layout.piece_length
        torrent.transfer.received.on_range(key[0], len(data), piece_length)
        torrent.provisional.keep(key[0], data)
        return data

    async def _bring_alone(self, torrent: Torrent, early: _Early, key: _Key) -> _Found | None:
        """Get a part from the mirror that answered last, however slow the link; not in silence."""
        found = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_in_silence, nursery.cancel_scope)
            found = await _ask_best(early, key)
            nursery.cancel_scope.cancel()
        if found is None:
            torrent.direct.pause()
        return found

    async def _bring_first(self, torrent: Torrent, early: _Early, key: _Key) -> _Found | None:
        """Get a part from the first mirror that answers, unless the metadata comes before."""
        mirrors = sorted((m for m in early.with_ranges if m.usable), key=_order)

        async def ask(mirror: MirrorReader) -> _Found:
            return await mirror.range(early.layer, *key), mirror

        async def lose_patience() -> None:
            await trio.sleep(PATIENCE_SECONDS)
            try:
                await torrent.metadata()
            except P2pcloopError:
                return  # whoever reads is told, once no mirror answers either
            nursery.cancel_scope.cancel()

        found = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_patience)
            found = await _first(mirrors, ask)
            nursery.cancel_scope.cancel()
        return found


def _refuse(early: _Early, mirror: MirrorReader) -> None:
    """Ask a mirror for nothing of a layer any more."""
    error = MismatchError(f"{mirror.base} has wrong bytes of a layer")
    mirror.on_failure(error, of_content=True)
    if mirror not in early.refused:
        early.refused.append(mirror)
    for known in (early.mirrors, early.web_seeds, early.whole):
        if mirror in known:
            known.remove(mirror)


def _best(early: _Early) -> MirrorReader | None:
    """The server that answered last, if there is one whose bytes are the layer's for certain."""
    usable = [mirror for mirror in early.with_ranges if mirror.usable]
    return min(usable, key=_order, default=None)


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


async def _ask_best(early: _Early, key: _Key) -> _Found | None:
    """A part from the mirror that answered last; None where it fails, or there is none."""
    mirror = _best(early)
    if mirror is None:
        return None
    try:
        return await mirror.range(early.layer, *key), mirror
    except P2pcloopError:
        return None  # it keeps its own error, for whoever asks for the status


async def _first(
    mirrors: Iterable[MirrorReader], ask: Callable[[MirrorReader], Awaitable[Result]]
) -> Result | None:
    """What the first mirror answers that does; None where all fail.

    The next one is asked when one fails, or lets us wait. Each keeps its own error, for whoever
    asks for the status.
    """
    found: list[Result] = []

    async def run(mirror: MirrorReader, failed: trio.Event) -> None:
        try:
            found.append(await ask(mirror))
        except P2pcloopError:
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for mirror in mirrors:
            failed = trio.Event()
            nursery.start_soon(run, mirror, failed)
            with trio.move_on_after(STAGGER_SECONDS):
                await failed.wait()
    return found[0] if found else None


def _order(mirror: MirrorReader) -> tuple[bool, float]:
    return not mirror.usable, mirror.preference
