"""What the store of a home holds now, as `p2pcloop.store.eviction` wants it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

import trio

from p2pcloop.errors import storage_error
from p2pcloop.store.eviction import TorrentUse
from p2pcloop.store.home import Home
from p2pcloop.store.provisional_log import FILE_NAME
from p2pcloop.store.stamps import load_stamps
from p2pcloop.store.usage import Keep, Usage, look_at_usage
from p2pcloop.words import tr
from p2pcloopd.engine.disk.holes import allocated, is_linked, needed
from p2pcloopd.engine.disk.stored import Stored
from p2pcloopd.engine.torrent import Torrent

GRACE_SECONDS = 24 * 3600
"""What nothing names yet may be about to be published."""

LAYER_FILES = ["index", "pack"]

_STAT_UNIT = 512  # stat(2): st_blocks
_JUNK = 256 << 10
"""Less is not worth leaving a swarm for."""


async def look(home: Home, torrents: Iterable[Torrent]) -> list[TorrentUse]:
    """Look at all torrents; errors as of `look_at_usage`."""
    torrents = list(torrents)
    for torrent in torrents:
        await torrent.store.provisional.flush()  # what is on the disk is looked at
    known = [(each.info_hash, each.store.disk, each.peers.wanted) for each in torrents]

    def work() -> list[TorrentUse]:
        usage = look_at_usage(home)
        return [_use(home.torrents / found[0].hex(), *found, usage) for found in known]

    return await trio.to_thread.run_sync(work)


def _use(
    directory: Path, info_hash: bytes, disk: Stored | None, wanted: bool, usage: Usage
) -> TorrentUse:
    try:
        records, provisional, changed = _beside(directory)
        empty = disk is None and not any(directory.glob("data/*"))
    except OSError as err:
        raise storage_error(tr("cannot look at {path}", path=directory), err) from err
    keep = usage.keep.get(info_hash) or (Keep.READING if wanted else None)
    named = info_hash in usage.named
    settled = not named and time.time() - changed > GRACE_SECONDS
    if disk is None:
        gone = settled and empty
        return TorrentUse(
            info_hash, 0, 0, b"", (), 0, records + provisional, keep=keep, garbage=gone
        )
    layer = [path.name for path, _ in disk.layout.files] == LAYER_FILES
    here = disk.have.to_list()
    room = allocated(disk.content)
    junk = room - needed(disk.content, disk.layout, here)
    return TorrentUse(
        info_hash,
        disk.layout.total_size,
        disk.layout.piece_length,
        disk.have.bits(),
        load_stamps(directory, disk.layout.pieces),
        room,
        records,
        junk if junk > _JUNK + room // 64 else 0,
        keep or _kept_by_files(disk, layer) or (None if named or settled else Keep.NEW),
        garbage=settled and layer,
        provisional=provisional,
    )


def _kept_by_files(disk: Stored, layer: bool) -> Keep | None:
    if disk.in_place:
        return Keep.IN_PLACE
    if is_linked(disk.content):
        return Keep.LINKED
    return None if layer else Keep.RECORDS


def _beside(directory: Path) -> tuple[int, int, float]:
    """Bytes on the disk of records and of provisional ranges, and when any of it changed last."""
    records = provisional = 0
    changed = []
    for path in directory.glob("*"):
        status = path.lstat()
        changed.append(status.st_mtime)
        if S_ISREG(status.st_mode):
            size = _STAT_UNIT * status.st_blocks
            records, provisional = (
                (records, size) if path.name == FILE_NAME else (records + size, provisional)
            )
    return records, provisional, max(changed, default=time.time())
