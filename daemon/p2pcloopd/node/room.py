"""Room on disk: what goes when there is too much, by itself or on demand (docs/storage.md)."""

from __future__ import annotations

import logging
import time

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.store.eviction import Choice, choose, describe_kept
from p2pcloop.store.home import Home
from p2pcloop.store.pins import load_pins, save_pins
from p2pcloop.store.stamps import save_stamps
from p2pcloop.store.usage import Usage, look_at_usage
from p2pcloop.units import format_size
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.room_usage import look

_log = logging.getLogger(__name__)

ROUNDS = 4
"""A piece gives back less than its size where its neighbours stay: then a few more must go."""

SLACK = 16
"""By itself p2pcloopd goes a sixteenth below the quota, so that it need not go again at once."""

STEP = 16 << 20
"""Where all that is left must stay, it looks again after so many more bytes at the least."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        first: what was chosen at first.
        left: bytes on the disk afterwards.
        removed: torrents that were removed.
        evicted: pieces that were evicted, by torrent.
        last: what is chosen now; `kept` of it says what stays.
    """

    first: Choice
    left: int
    removed: tuple[bytes, ...]
    evicted: dict[bytes, set[int]]
    last: Choice


class Room:
    """Keeps the store of a home within its quota.

    Attributes:
        quota: bytes, or None for no limit.
        collecting: held while it is decided what may go, and while that goes.
    """

    def __init__(self, home: Home, engine: Engine, quota: int | None) -> None:
        self.quota = quota
        self._home = home
        self._engine = engine
        self.collecting = trio.Lock()
        self._noting = trio.Lock()
        self._news = trio.Event()
        self._beside = 0
        self._limit = 0
        engine.on_saved = self._on_saved

    # --- what operations do -----------------------------------------------------------------

    async def collect(self, quota: int | None, *, dry_run: bool = False) -> Collected:
        """Remove what nothing names; evict until `quota` holds, or nothing more may go.

        Args:
            quota: bytes; None: nothing is evicted.
            dry_run: do nothing, only say what would go.

        Raises:
            FormatError, MismatchError, UsageError: it cannot be told what may go.
            StorageError: the disk refused.
        """
        async with self.collecting:
            first = choice = await self._choose(quota)
            if dry_run:
                evict = {torrent: set(pieces) for torrent, pieces in choice.evict.items()}
                return Collected(choice, choice.left, choice.remove, evict, choice)
            removed: list[bytes] = []
            evicted: dict[bytes, set[int]] = {}
            for _ in range(ROUNDS):
                if not await self._carry_out(choice, removed, evicted):
                    break
                choice = await self._choose(quota)
            return Collected(first, choice.room, tuple(removed), evicted, choice)

    async def used(self, torrent: Torrent, pieces: bytes | None = None) -> None:
        """Note that a boot used pieces just now, or that all of a torrent was asked for.

        Args:
            pieces: one bit a piece, most significant bit first; None: all.

        Raises:
            UsageError: there are not as many bits as pieces.
            StorageError: the disk refused.
        """
        if torrent.layout is None:
            return  # nothing of it is here
        count = torrent.layout.pieces
        if pieces is None:
            pieces = b"\xff" * ((count + 7) // 8)
        directory = self._home.torrents / torrent.info_hash.hex()
        async with self._noting:
            now = int(time.time())
            await trio.to_thread.run_sync(save_stamps, directory, count, pieces, now)

    async def pin(self, manifest_id: bytes, name: str | None) -> bool:
        """Pin a manifest, or unpin it where `name` is None; tell whether it was pinned before."""
        async with self.collecting:  # when this is answered, nothing more of it goes
            pins = await trio.to_thread.run_sync(load_pins, self._home)
            before = pins.pop(manifest_id, None) is not None
            if name is not None:
                pins[manifest_id] = name
            await trio.to_thread.run_sync(save_pins, self._home, pins)
        self.look_again()
        return before

    def look_again(self) -> None:
        """Look at the quota anew: what had to stay may go now."""
        if self.quota is not None:
            self._limit = self.quota
            self._news.set()

    def set_quota(self, quota: int | None) -> None:
        """Keep within another quota from now on."""
        self.quota = quota
        self._limit = quota or 0
        self._news.set()

    # --- by itself --------------------------------------------------------------------------

    async def run(self) -> None:
        """Evict when what is here grows over the quota, for ever. Demand is never refused."""
        measured = False
        while True:
            if self.quota is not None and not measured:
                self._limit = self.quota
                await self._measure()
                measured = True
            if self.quota is not None and self._beside + self._held() > self._limit:
                await self._keep_within(self.quota)
            await self._news.wait()
            self._news = trio.Event()

    def _on_saved(self) -> None:
        if self.quota is not None:
            self._news.set()

    def _held(self) -> int:
        """Bytes of content that are here: costs nothing, so that it can be asked at each save."""
        return sum(torrent.have_bytes for torrent in self._engine.torrents)

    async def _measure(self) -> None:
        try:
            self._record(await self._choose(None))
        except P2pcloopError as err:
            _log.warning("the room on disk cannot be measured: %s", err)

    async def _keep_within(self, quota: int) -> None:
        try:
            done = await self.collect(quota - quota // SLACK)
        except P2pcloopError as err:
            _log.warning("the quota cannot be kept: %s", err)
            self._limit = self._beside + self._held() + max(STEP, quota // 64)
            return
        if quota != self.quota:
            return  # it was set anew meanwhile
        gone = sum(map(len, done.evicted.values()))
        if gone or done.removed:
            _log.info("quota: %d pieces evicted, %d torrents removed", gone, len(done.removed))
        self._limit = quota
        if done.left > quota:
            self._limit = done.left + max(STEP, quota // 64)
            used, limit = format_size(done.left), format_size(quota)
            why = describe_kept(done.last.kept)
            _log.warning("quota: %s are used, the quota is %s: %s", used, limit, why)

    # --- both -------------------------------------------------------------------------------

    async def _choose(self, quota: int | None) -> Choice:
        uses = await look(self._home, self._engine.torrents)
        choice = await trio.to_thread.run_sync(choose, uses, quota)
        self._record(choice)
        return choice

    def _record(self, choice: Choice) -> None:
        """Remember how far what is on the disk is from what `_held` can tell."""
        self._beside = choice.room - self._held()

    async def _carry_out(
        self, choice: Choice, removed: list[bytes], evicted: dict[bytes, set[int]]
    ) -> bool:
        """Do what was chosen, but for what came into use meanwhile; tell whether anything went."""
        some = False
        for info_hash in choice.remove:
            usage = await self._usage()
            if info_hash in usage.named or info_hash in usage.keep:
                continue
            if await self._engine.remove(info_hash, self._home.tmp):
                removed.append(info_hash)
                some = True
        for info_hash, pieces in choice.evict.items():
            torrent = self._engine.get(info_hash)
            if torrent is None or info_hash in (await self._usage()).keep:
                continue
            parts = torrent.store.provisional.size
            if await torrent.evict(pieces):
                evicted.setdefault(info_hash, set()).update(pieces)
                some |= bool(pieces or parts)
        return some

    async def _usage(self) -> Usage:
        return await trio.to_thread.run_sync(look_at_usage, self._home)
