"""A torrent in a world of its own: simulated peers, mirrors and time, and no libtorrent.

A test says what readers want and what peers, web seeds and mirrors do. It sees what is asked of
which source, and when. The store is real, in the test's directory. The clock stands still but for
`World.advance`, which goes from deadline to deadline.

Only `World.torrent` knows how a node puts a torrent together: a test knows what goes in and what
comes out, so that it holds whatever the fetch scheduler is made of.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import cast

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloop.errors import NotHereError, P2pcloopError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.mirror import (
    DispatchPath,
    LayerFilePath,
    MetainfoPath,
    MirrorPath,
    build_metainfo,
    layer_torrent_name,
)
from p2pcloop.store.in_place import HeldFile
from p2pcloopd.engine.disk.metainfo import TorrentLayout, bencode, info_dictionary
from p2pcloopd.engine.disk.record import Peer, Record, Sources
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.fetch.backfill import fill as fill_torrent
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.range_requests import NoServers
from p2pcloopd.engine.fetch.swarm import Others, Priority, Traffic
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.http.client import Span, Take
from p2pcloopd.http.mirrors import MirrorReader, Mirrors
from p2pcloopd.http.wire import Wire
from p2pcloopd.node.servers import Layers

AHEAD, BACKGROUND, DEMAND, IDLE = (
    Priority.READAHEAD,
    Priority.FILL,
    Priority.DEMAND,
    Priority.IDLE,
)

PIECE = 1 << 14
INDEX = 100
"""Bytes of the layer's index: it ends inside of the first piece."""

ROUND_TRIP = 0.02
"""Seconds that a mirror takes to answer, where a test says nothing else."""


@lru_cache
def content_of(size: int) -> bytes:
    """Bytes that no two pieces have in common."""
    return random.Random(size).randbytes(size)


@dataclass
class FakeSwarm:
    """libtorrent as a torrent sees it: it notes what is wanted, and sends what the test says.

    Attributes:
        wanted: the priority of each piece that is wanted.
        log: what was wanted, in order: time, priority, pieces.
        peer: whether a peer is connected, which is asked at once for all that is wanted.
        is_foreign: whether peers are of another program.
        where: peers that have not all.
        have: how many of these have each piece.
        crowded, without: what `crowd` was told last.
        late: whether news come only when the torrent asks which pieces were asked of peers, as on a
            machine that is busy.
        quick: pieces that the peer is not asked for before the moment when it would have been told
            no more of them: then it sends them at once.
        keeps: whether the peer sends, too, what it is told no more of.
        insisted: how often an end-game was wanted.
        dialled: the addresses that were connected to.
        hurried: the pieces that were wanted each time when it was to connect at once.
    """

    peer: bool = False
    is_foreign: bool = False
    where: Others = field(default_factory=Others)
    have: list[int] = field(default_factory=list)
    wanted: dict[int, Priority] = field(default_factory=dict)
    log: list[tuple[float, Priority, tuple[int, ...]]] = field(default_factory=list)
    crowded: bool = False
    late: bool = False
    quick: set[int] = field(default_factory=set)
    keeps: bool = False
    without: frozenset[str] = frozenset()
    insisted: int = 0
    dialled: list[Peer] = field(default_factory=list)
    hurried: list[list[int]] = field(default_factory=list)
    joined: int = 0
    torrent: Torrent = field(init=False)
    content: bytes = b""
    _here: set[int] = field(default_factory=set)
    _kept: set[int] = field(default_factory=set)
    _news: list[Callable[[], None]] = field(default_factory=list)
    _some: trio.Event = field(default_factory=trio.Event)

    # --- what the torrent asks --------------------------------------------------------------

    def start(
        self,
        info: bytes | None,
        have: list[bool] | None,
        sources: Sources,  # noqa: ARG002  see Swarm
        held: Mapping[int, HeldFile],  # noqa: ARG002
    ) -> None:
        self.joined += 1
        self.crowded, self.without = False, frozenset()
        self._here = {piece for piece, here in enumerate(have or ()) if here}
        if info is not None:
            self._later(self.torrent.fetcher.on_checked)

    async def stop(self) -> None:
        self.wanted.clear()
        self._kept.clear()
        await trio.lowlevel.checkpoint()

    def prioritize(self, pieces: Iterable[int], priority: Priority) -> None:
        asked = tuple(pieces)
        if asked:
            self.log.append((trio.current_time(), priority, asked))
        for piece in asked:
            if priority is Priority.IDLE and piece in self.quick:
                self.quick.remove(piece)
                self._send(piece)
            elif priority is Priority.IDLE or piece in self._here:
                if self.wanted.pop(piece, None) is not None and self.keeps:
                    self._kept.add(piece)
            else:
                self.wanted[piece] = priority

    def insist(self) -> None:
        self.insisted += 1

    def others(self) -> Others:
        return self.where

    def copies(self) -> list[int]:
        return self.have

    def crowd(self, *, on: bool, without: frozenset[str]) -> None:
        self.crowded, self.without = on, without

    def foreign(self) -> bool:
        return self.peer and self.is_foreign

    def requested(self) -> set[int]:
        asked = self._kept.union(self.wanted).difference(self.quick) if self.peer else set[int]()
        self.hear()
        return asked

    def add_piece(self, piece: int, data: bytes) -> None:
        assert data == self.content[piece * PIECE :][:PIECE]
        self._later(partial(self._arrived, piece))

    def read_piece(self, piece: int) -> None:
        data = self.content[piece * PIECE :][:PIECE]
        self._later(lambda: self.torrent.fetcher.on_piece_read(piece, data))

    def flush(self) -> None:
        self.write(self._here)
        self._later(self.torrent.store.on_flushed)

    def connect(self, peer: Peer) -> None:
        self.dialled.append(peer)

    def hurry(self) -> None:
        self.hurried.append(sorted(self.wanted))

    def add_sources(self, sources: Sources) -> None:
        pass

    def look_up(self) -> None:
        pass

    def here(self) -> list[bool]:
        layout = self.torrent.layout
        return [piece in self._here for piece in range(layout.pieces if layout else 0)]

    def traffic(self) -> Traffic:
        return self.torrent.peers.traffic()

    # --- what a test says -------------------------------------------------------------------

    def send(self, *pieces: int) -> None:
        """Have the peer send pieces."""
        assert self.peer
        for piece in pieces:
            asked = piece in self.wanted or piece in self._kept
            assert asked, f"piece was not asked for: {piece}"
            self._send(piece)

    def trickle(self) -> None:
        """Have the peer send a byte: it is not silent."""
        self.torrent.peers.on_received(("10.0.0.9", 1), 1)

    def connected(self, host: str = "10.0.0.9") -> None:
        """Have a peer there that is asked for all that is wanted."""
        self.peer = True
        self.torrent.peers.on_connected((host, 1))

    def by_priority(self, priority: Priority) -> list[int]:
        """The pieces that are wanted so much now, in order."""
        return sorted(piece for piece, wanted in self.wanted.items() if wanted == priority)

    def order(self, priority: Priority) -> list[int]:
        """All pieces that were ever asked for with this priority, in the order of asking."""
        return [piece for _, wanted, asked in self.log if wanted == priority for piece in asked]

    # --- inside -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring the news, in their order, for ever."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            if not self.late:
                self.hear()

    def hear(self) -> None:
        """Bring the news now."""
        while self._news:
            self._news.pop(0)()

    def _send(self, piece: int) -> None:
        """Have a piece whole here at once, and told of later."""
        self.wanted.pop(piece, None)
        self._kept.discard(piece)
        self._here.add(piece)
        self._later(partial(self._sent, piece))

    def _sent(self, piece: int) -> None:
        size = len(self.content[piece * PIECE :][:PIECE])
        self.torrent.peers.on_received(("10.0.0.9", 1), size)
        self.torrent.store.received.on_block(piece, 0, piece * PIECE, size)
        self.torrent.fetcher.on_piece_arrived(piece)

    def write(self, pieces: Iterable[int]) -> None:
        """Write pieces to the files, as libtorrent's cache is."""
        content = self.torrent.store.stored.content
        for piece in pieces:
            data = self.content[piece * PIECE :][:PIECE]
            for path, offset, length in content.parts(piece * PIECE, len(data)):
                path.parent.mkdir(exist_ok=True)
                path.touch()
                with open(path, "r+b") as file:
                    file.seek(offset)
                    file.write(data[:length])
                data = data[length:]

    def _arrived(self, piece: int) -> None:
        self.wanted.pop(piece, None)
        self._here.add(piece)
        self.torrent.fetcher.on_piece_arrived(piece)

    def _later(self, news: Callable[[], None]) -> None:
        self._news.append(news)
        self._some.set()


class HangError(Exception):
    """A mirror that never answers (`FakeMirror.fault`)."""


@dataclass
class FakeMirror:
    """The files of one mirror (p2pcloopd.http.mirrors.Files), and what it was asked for.

    Attributes:
        base: its URL.
        content: of the torrent, its files end to end.
        wire: counts what it sends.
        delay: seconds until it answers.
        fault: raised instead of an answer, after `delay`; `HangError` never answers.
        lacks: pieces that it does not have.
        lies: whether its bytes are wrong.
        dispatches: whether it is a node, and gives each piece to one client.
        speed: bytes a second, as measured.
        asked: the ranges of the content that it was asked for, in order.
        asked_at: when, for each of them.
        whole: how often a whole file was asked for.
        candidates: the pieces of each request to hand one out.
        gone: pieces that went to other clients.
    """

    base: str
    content: bytes
    layer: LayerRef
    info: bytes
    wire: Wire
    delay: float = ROUND_TRIP
    fault: Exception | None = None
    lacks: set[int] = field(default_factory=set)
    lies: bool = False
    dispatches: bool = False
    speed: float | None = None
    asked: list[range] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    whole: int = 0
    infos: list[float] = field(default_factory=list)
    candidates: list[tuple[int, ...]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    async def get(self, path: MirrorPath, limit: int) -> bytes:  # noqa: ARG002  see Files
        assert isinstance(path, MetainfoPath)
        self.infos.append(trio.current_time())
        await self._answer()
        return build_metainfo(self.info)

    async def get_span(self, path: MirrorPath, span: Span) -> bytes:
        start = self._start_of(path) + span.offset
        self.asked.append(range(start, start + span.length))
        self.asked_at.append(trio.current_time())
        await self._answer()
        if self.lacks.intersection(range(start // PIECE, -(-(start + span.length) // PIECE))):
            raise NotHereError(f"{self.base} does not have it")
        self.wire.add(span.length, 0)
        return bytes(span.length) if self.lies else self.content[start : start + span.length]

    async def get_parts(self, path: MirrorPath, size: int, take: Take) -> None:
        self.whole += 1
        start = self._start_of(path)
        for at in range(start, start + size, 100_000):
            await trio.sleep(self.delay)
            data = self.content[at : min(at + 100_000, start + size)]
            self.wire.add(len(data), 0)
            await take(data)

    async def post(self, path: MirrorPath, limit: int) -> bytes:  # noqa: ARG002  see Files
        assert isinstance(path, DispatchPath)
        if not self.dispatches:
            raise NotHereError(f"{self.base} dispatches nothing")
        self.candidates.append(path.pieces)
        await self._answer()
        for piece in path.pieces:
            if piece not in self.gone:
                self.gone.add(piece)
                data = self.content[piece * PIECE :][:PIECE]
                self.wire.add(len(data), 0)
                return piece.to_bytes(4, "big") + (bytes(len(data)) if self.lies else data)
        return b""

    def rate(self) -> float | None:
        return self.speed

    @property
    def pieces(self) -> set[int]:
        """The pieces that it was asked for bytes of."""
        return {
            piece
            for each in self.asked
            for piece in range(each.start // PIECE, -(-each.stop // PIECE))
        }

    def _start_of(self, path: MirrorPath) -> int:
        assert isinstance(path, LayerFilePath)
        assert path.torrent_name == layer_torrent_name(self.layer.layer_id)
        return 0 if path.file == "index" else self.layer.index_length

    async def _answer(self) -> None:
        await trio.sleep(self.delay)
        if isinstance(self.fault, HangError):
            await trio.sleep_forever()
        if self.fault is not None:
            raise self.fault


@dataclass
class Task:
    """What a client wants, and what it was told.

    Attributes:
        data: the answer of a read.
        error: what it ended with.
        done: whether it ended.
    """

    data: bytes | None = None
    error: P2pcloopError | None = None
    done: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def cancel(self) -> None:
        """Have the client go away."""
        self.scope.cancel()


class Run:
    """A torrent that runs in a simulated world, and its clients.

    Attributes:
        torrent: it.
        swarm: its peers.
        mirrors: those that it knows, web seeds last.
        content: what it is to hold.
        host: the address of every mirror.
        name_servers: has a command name them once more.
    """

    def __init__(
        self,
        torrent: Torrent,
        swarm: FakeSwarm,
        mirrors: list[FakeMirror],
        nursery: trio.Nursery,
        world: World,
        name_servers: Callable[[], object],
    ) -> None:
        self._world = world
        self.torrent = torrent
        self.swarm = swarm
        self.mirrors = mirrors
        self.content = swarm.content
        self.host = "10.0.0.99"
        self._nursery = nursery
        self.name_servers = name_servers

    @property
    def mirror(self) -> FakeMirror:
        """The only one."""
        (mirror,) = self.mirrors
        return mirror

    def read(self, offset: int, length: int = 1000, *, heal: bool = False) -> Task:
        """Have a client read, and a guest wait for it."""

        async def work() -> bytes:
            self.torrent.demand.record_read()
            return await self.torrent.read_range(offset, length, heal=heal)

        return self._start(work)

    def read_piece(self, piece: int) -> Task:
        """Have a client read some bytes of a piece."""
        return self.read(piece * PIECE + 10, 100)

    def expect(self, pieces: Iterable[int]) -> list[Task]:
        """Have a client read pieces ahead, as a stream of a profile does."""

        async def work(piece: int) -> bytes:
            offset, length = piece * PIECE, len(self.content[piece * PIECE :][:PIECE])
            return await self.torrent.read_range(offset, length, ahead=True, exact=False)

        tasks = {piece: Task() for piece in pieces}

        async def begin() -> None:
            for piece, task in tasks.items():
                self._nursery.start_soon(_carry_out, task, partial(work, piece))
                await trio.lowlevel.checkpoint()  # tasks that begin together do so in any order

        self._nursery.start_soon(begin)
        return list(tasks.values())

    def guess(self, offset: int, length: int) -> Task:
        """Have a client read one range ahead, for which no guest waits."""

        async def work() -> bytes:
            return await self.torrent.read_range(offset, length, ahead=True)

        return self._start(work)

    def fetch(self) -> Task:
        """Have a client ask for all of it."""
        return self._start(partial(fetch_all, self.torrent))

    def fill(self, rate: int = 0) -> Task:
        """Have a client ask for all of it in idle time."""
        return self._start(partial(fill_torrent, self.torrent, rate))

    async def keep_sending(self, seconds: float) -> None:
        """Go on for so long with a peer that sends all the time, if nothing of use."""
        for _ in range(round(seconds / 0.1)):
            self.swarm.trickle()
            await self._world.advance(0.1)

    def lose_servers(self) -> None:
        """Have no HTTP server any more."""
        self.torrent.servers = NoServers()

    def no_exact_ranges(self) -> None:
        """Have no server asked for exact ranges for a while: one failed."""
        self.torrent.fetcher.ranges.exact.trip(trio.current_time())

    def publish(self) -> None:
        """Say that other nodes are about to ask for what is here."""
        self.torrent.completion.hurry()

    def is_cheap(self, length: int) -> bool:
        """Whether a guess of so many bytes is worth its time on the link."""
        return self.torrent.guess_is_worth_it(length)

    def waits(self) -> bool:
        """Whether peers are needed: those that were named are dialled."""
        return self.torrent.peers.wanted

    def _start(self, work: Callable[[], Awaitable[bytes | None]]) -> Task:
        task = Task()
        self._nursery.start_soon(_carry_out, task, work)
        return task


async def _carry_out(task: Task, work: Callable[[], Awaitable[bytes | None]]) -> None:
    with task.scope:
        try:
            task.data = await work()
        except P2pcloopError as err:
            task.error = err
        task.done = True


class _Seeds:
    """Opens web seeds (p2pcloopd.http.mirrors.Mirrors)."""

    def __init__(self, readers: Mapping[str, MirrorReader]) -> None:
        self.open_seed = readers.__getitem__


class _Names(trio.abc.HostnameResolver):
    """Knows mirrors by name."""

    tell: Callable[[], str]

    async def getaddrinfo(self, host: object, *_rest: object, **_how: object) -> list[object]:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        address = host if str(host)[0].isdigit() else self.tell()
        return [(2, 1, 6, "", (address, 0))]

    async def getnameinfo(self, *_question: object) -> tuple[str, str]:
        raise NotImplementedError


class World(trio.abc.Clock):
    """Time and a disk. As an argument of a test, it is the test's clock (pytest-trio)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clock = MockClock()

    def start_clock(self) -> None:
        self._clock.start_clock()

    def current_time(self) -> float:
        return self._clock.current_time()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return self._clock.deadline_to_sleep_time(deadline)

    async def settle(self) -> None:
        """Let every task run until all wait for the clock, and the disk is done."""
        threads = trio.to_thread.current_default_thread_limiter()
        await wait_all_tasks_blocked()
        while threads.borrowed_tokens:
            await wait_all_tasks_blocked(0.0002)

    async def advance(self, seconds: float = 0.0) -> None:
        """Go on for so long, from one deadline to the next."""
        end = self.current_time() + seconds
        await self.settle()
        while (left := end - self.current_time()) > 0:
            due = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._clock.jump(min(max(due, 1e-6), left))
            await self.settle()

    @asynccontextmanager
    async def torrent(
        self,
        pieces: int = 64,
        *,
        mirrors: int = 0,
        web_seeds: int = 0,
        named: bool = True,
        known: bool = True,
        **swarm: object,
    ) -> AsyncIterator[Run]:
        """Run a torrent of so many pieces, the last one short, while the context lasts.

        Args:
            mirrors, web_seeds: how many servers it has.
            named: whether the user named a peer.
            known: whether its metadata is here.
            swarm: attributes of its `FakeSwarm`.
        """
        content = content_of(pieces * PIECE - 5)
        layer, layout, info = _layer(content)
        record = Record(self._directory / layer.torrent.hex())
        record.create()
        if known:
            record.save_torrent(info)
        bus = FakeSwarm(content=content, **({"have": [0] * pieces} | swarm))  # type: ignore[arg-type]
        decoded = info_dictionary(layout, _hashes(content))
        torrent = Torrent(
            *(layer.torrent, record, bus, Demand()),
            decode=lambda _info: decoded,
            on_stall=lambda _torrent: None,
        )
        bus.torrent = torrent
        bases = [f"http://mirror{n}/" for n in range(mirrors)]
        seeds = [f"http://seed{n}/" for n in range(web_seeds)]
        wire = Wire()
        servers = [FakeMirror(base, content, layer, info, wire) for base in (*bases, *seeds)]
        know = _connect(torrent, servers, bases, seeds, alone=not named)
        names = _Names()
        trio.socket.set_custom_hostname_resolver(names)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            await torrent.start(Sources(peers=(("10.0.0.9", 1),) if named else ()))
            nursery.start_soon(torrent.run)
            await self.settle()
            it = Run(torrent, bus, servers, nursery, self, know)
            names.tell = lambda: it.host
            yield it
            nursery.cancel_scope.cancel()


def _connect(
    torrent: Torrent, servers: list[FakeMirror], bases: list[str], seeds: list[str], *, alone: bool
) -> Callable[[], object]:
    """Have a torrent know its servers; `alone` is whether they alone have its metadata.

    Returns:
        What has them named once more.
    """
    if not servers:
        return lambda: None
    readers = {files.base: MirrorReader(files.base, files) for files in servers}
    layers = Layers(servers[0].wire, cast(Mirrors, _Seeds(readers)))
    known_ones = [readers[base] for base in bases]
    know = partial(layers.know, servers[0].layer, known_ones, seeds)
    torrent.servers = known = know()
    if bases:
        torrent.elsewhere = partial(known.info, alone=alone)
    return know


def _hashes(content: bytes) -> bytes:
    return b"".join(
        hashlib.sha1(content[at : at + PIECE], usedforsecurity=False).digest()
        for at in range(0, len(content), PIECE)
    )


@lru_cache
def _layer(content: bytes) -> tuple[LayerRef, TorrentLayout, bytes]:
    """A layer of this content: how manifests and metadata describe it."""
    layer_id = hashlib.sha256(content).digest()
    name = layer_torrent_name(layer_id)
    files = (
        (PurePosixPath(name, "index"), INDEX),
        (PurePosixPath(name, "pack"), len(content) - INDEX),
    )
    layout = TorrentLayout(name, files, PIECE, len(content))
    info = bencode(info_dictionary(layout, _hashes(content)))
    torrent = hashlib.sha1(info, usedforsecurity=False).digest()
    layer = LayerRef(layer_id, torrent, INDEX, 100, len(content) - INDEX, PIECE)
    return layer, layout, info
