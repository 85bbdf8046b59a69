"""Bringing all of a torrent: because somebody asked for it, or when nobody needs the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import filterfalse, islice

import trio

from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.engine.transfer import Transfer
from p2pcloopd.engine.unless import unless

QUIET_SECONDS = 0.5
"""So long no reader must have waited."""


async def fetch_all(torrent: Torrent, progress: Callable[[int, int], None] | None = None) -> None:
    """Fetch whatever is missing, behind any reader that waits, and make it durable.

    Args:
        progress: called with (bytes here, bytes in all) as pieces arrive.

    Raises:
        StorageError, CorruptError, FormatError: as for `Torrent.read`.
    """
    layout = await torrent.metadata()
    transfer = torrent.transfer
    with transfer.background():
        while not transfer.stored.have.complete():
            await torrent.saver.mend()
            if transfer.complete():
                await torrent.save()
                continue
            await transfer.more()
            if progress is not None:
                progress(torrent.have_bytes, layout.total_size)
    if progress is not None:
        progress(layout.total_size, layout.total_size)


async def fill(torrent: Torrent, rate: int) -> None:
    """Return when all of a torrent is here, brought behind readers and what is read ahead of them.

    A reader who is kept waiting empties this queue: what of it was not asked of a peer yet is let
    go, and no more is asked for until none has waited for a while.

    Args:
        rate: bytes a second at most, 0 for as many as come.

    Raises:
        StorageError, CorruptError, FormatError: as for `Torrent.read`.
    """
    layout = await torrent.metadata()
    transfer = torrent.transfer
    absent: Iterator[int] = iter(())
    with torrent.peers.needed():
        while not transfer.complete():
            begun = trio.current_time()
            await transfer.demand.quiet(QUIET_SECONDS, begun - QUIET_SECONDS)
            window = transfer.window()
            asked = min(window, rate) if rate else window
            batch = list(islice(absent, max(1, asked // layout.piece_length)))
            if not batch:
                absent = filterfalse(transfer.has, range(layout.pieces))
                continue
            with transfer.spare(batch):
                await unless(transfer.demand.some, partial(_all_here, transfer, batch))
            if rate:
                came = sum(map(transfer.has, batch)) * layout.piece_length
                await trio.sleep_until(begun + came / rate)
    await torrent.save()


async def _all_here(transfer: Transfer, pieces: Collection[int]) -> None:
    left = deque(pieces)
    while left:
        while left and transfer.has(left[0]):
            left.popleft()
        if left:
            await transfer.change()
