"""Choosing what to evict, by what is here and when it was used. This module deletes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from p2pcloop.frozen import dataclass
from p2pcloop.store.have import MAX_PIECES
from p2pcloop.store.stamps import set_bits
from p2pcloop.store.usage import Keep
from p2pcloop.units import format_size


@dataclass(frozen=True, slots=True)
class TorrentUse:
    """One torrent of the store.

    Attributes:
        torrent: info hash.
        size: bytes of its content; 0 while that is not known.
        piece_length: bytes of each piece but the last.
        here: the pieces that are here, one bit each, most significant bit first.
        stamps: when each piece was last booted, seconds since 1970; 0: never.
        room: bytes of its content on the disk.
        records: bytes of its other files on the disk, which are deleted with the torrent only.
        junk: bytes of `room` that belong to no piece that is here.
        keep: the reason why nothing of it may be evicted, or None.
        garbage: no manifest names it: it is removed whole.
        provisional: bytes on the disk of provisional ranges (store/provisional_log.py).
    """

    torrent: bytes
    size: int
    piece_length: int
    here: bytes
    stamps: Sequence[int]
    room: int
    records: int = 0
    junk: int = 0
    keep: Keep | None = None
    garbage: bool = False
    provisional: int = 0

    @property
    def pieces(self) -> int:
        """The number of its pieces."""
        return len(self.stamps)

    def piece_size(self, piece: int) -> int:
        """Bytes of a piece: the last one may be shorter."""
        return min(self.piece_length, self.size - piece * self.piece_length)


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of what to evict.

    Attributes:
        remove: torrents that are removed whole.
        evict: pieces to evict, by torrent. All provisional ranges of such a torrent are evicted,
            too, and the bytes that belong to no piece; with no pieces, only these.
        room: bytes on the disk now.
        left: bytes on the disk afterwards; file systems may round up.
        kept: bytes that must stay, by reason.
    """

    remove: tuple[bytes, ...]
    evict: Mapping[bytes, tuple[int, ...]]
    room: int
    left: int
    kept: Mapping[Keep, int]


def choose(torrents: Iterable[TorrentUse], quota: int | None) -> Choice:
    """Choose what to evict so that the rest takes at most `quota` bytes.

    Torrents that no manifest names, and bytes that belong to no piece, are evicted in any case.
    Next are provisional ranges, which no peer can be served from, all of a torrent at once. Then
    pieces, one by one, the least recently booted first. Of pieces that no boot ever used, those of
    the torrent that was unused for longest are first, from its end: boots need the start of a
    pack.

    Args:
        quota: None: evict only what is evicted in any case.
    """
    uses = sorted(torrents, key=lambda use: use.torrent)
    free = [use for use in uses if use.keep is None]
    remove = tuple(use.torrent for use in free if use.garbage)
    free = [use for use in free if not use.garbage]
    room = sum(use.room + use.provisional + use.records for use in uses)
    gone = [use for use in uses if use.torrent in set(remove)]
    left = room - sum(use.room + use.provisional + use.records for use in gone)
    left -= sum(use.junk for use in free)
    evict: dict[bytes, list[int]] = {use.torrent: [] for use in free if use.junk}
    for use in sorted(free, key=lambda use: max(use.stamps, default=0)):
        if quota is not None and left > quota and use.provisional:
            evict.setdefault(use.torrent, [])
            left -= use.provisional
    if quota is not None and left > quota:
        for use, piece in _least_recent_first(free):
            evict.setdefault(use.torrent, []).append(piece)
            left -= use.piece_size(piece)
            if left <= quota:
                break
    chosen = {torrent: tuple(sorted(pieces)) for torrent, pieces in evict.items()}
    return Choice(remove, chosen, room, left, _kept(uses, remove))


def _least_recent_first(uses: Sequence[TorrentUse]) -> Iterator[tuple[TorrentUse, int]]:
    """All pieces that are here, sorted by one number each, since tuples would hold up other
    threads: 32 bits of the stamp, 32 of the torrent's newest, 20 of its place, 18 of the piece.
    """
    keys: list[int] = []
    for place, use in enumerate(uses):
        rest = (max(use.stamps, default=0) << 20 | place) << 18 | MAX_PIECES - 1
        stamps = use.stamps
        keys += [(stamps[n] << 70 | rest) - n for n in set_bits(use.here, use.pieces)]
    keys.sort()
    for key in keys:
        yield uses[key >> 18 & 0xFFFFF], MAX_PIECES - 1 - (key & MAX_PIECES - 1)


def _kept(uses: Iterable[TorrentUse], removed: tuple[bytes, ...]) -> dict[Keep, int]:
    kept: Counter[Keep] = Counter()
    for use in uses:
        if use.keep is not None:
            kept[use.keep] += use.room + use.provisional
        if use.torrent not in removed:
            kept[Keep.RECORDS] += use.records
    return {reason: kept[reason] for reason in Keep if kept[reason]}


def describe_kept(kept: Mapping[Keep, int]) -> str:
    """The bytes that stay as text, most first: `1.5 GB are pinned, 0.6 GB lie below overlays`."""
    most = sorted(kept.items(), key=lambda item: -item[1])
    return ", ".join(f"{format_size(size)} {reason.value}" for reason, size in most)
