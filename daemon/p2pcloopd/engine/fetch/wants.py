"""What is wanted of one torrent: each piece once, and how urgently.

Readers wait for pieces, a guest behind them (`DEMAND`) or not yet (`READAHEAD`). Backfill wants
pieces because there is time (`FILL`). A piece is wanted as urgently as its most urgent user wants
it. Two readers of one piece share one fetch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloopd.engine.fetch.swarm import Priority
from p2pcloopd.engine.fetch.tuning import Tuning


@dataclass(slots=True, eq=False)
class Flight:
    """A range request for pieces that is under way.

    Attributes:
        run: the pieces.
        since: when it was asked for; infinity until then.
        exact: it was asked for at once, since a reader waits or bytes of it are here; the others
            fetch what peers do not send.
        hurried: a reader waited when it was asked for.
        hedged: peers were asked as well.
    """

    run: range
    since: float
    exact: bool
    hurried: bool = False
    hedged: bool = False

    @property
    def queued(self) -> bool:
        """Whether it waits behind other requests, since no reader waited for it."""
        return self.since == math.inf and not self.hurried


@dataclass(slots=True)
class Want:
    """A piece that is wanted, and what was done about it.

    Attributes:
        since: when it was wanted first; demand_since: since when a guest waits for it, or infinity.
        waiting, ahead, fills: how many readers wait for it, read it ahead, and jobs of backfill
            want it.
        dials: how many of these jobs need peers: those that the user named are tried for them.
        rests: how many of these jobs want what a server adds to bytes that are here, and no more.
        stalled: a reader got nothing for a while; it is cleared when something was done about it.
        asked: how urgently peers were told that it is wanted, IDLE where they were not.
        asked_since: when they were told first.
        flight: the range request for it, if there is one.
        for_server: it is kept for a web seed, while peers send the rest.
        absent_until: no server has it: none is asked before.
        single: servers are asked for it alone, since one of its neighbours was not there.
    """

    piece: int
    since: float
    demand_since: float = math.inf
    waiting: int = 0
    ahead: int = 0
    fills: int = 0
    dials: int = 0
    rests: int = 0
    stalled: bool = False
    asked: Priority = Priority.IDLE
    asked_since: float = math.inf
    flight: Flight | None = None
    for_server: bool = False
    absent_until: float = -math.inf
    single: bool = False
    keep: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    data: bytes | None = None
    error: P2pcloopError | None = None

    @property
    def priority(self) -> Priority:
        """How urgently it is wanted."""
        if self.waiting:
            return Priority.DEMAND
        return Priority.READAHEAD if self.ahead else Priority.FILL

    @property
    def servers_only(self) -> bool:
        """Whether it is not worth a whole piece of a peer."""
        return not (self.waiting or self.ahead) and self.fills == self.rests

    @property
    def unwanted(self) -> bool:
        """Whether its last user is gone."""
        return not (self.waiting or self.ahead or self.fills)


def side_by_side(pieces: Iterable[int], most: int) -> list[range]:
    """Pieces as runs that are side by side, of at most so many each."""
    runs: list[range] = []
    for piece in sorted(pieces):
        if runs and runs[-1].stop == piece and len(runs[-1]) < most:
            runs[-1] = range(runs[-1].start, piece + 1)
        else:
            runs.append(range(piece, piece + 1))
    return runs


def runs_of(wants: Iterable[Want], most: int, length: int) -> Iterator[range]:
    """Up to `most` runs of up to `length` pieces, side by side and equally urgent; the most urgent
    pieces come first. One that is `single` is a run of its own."""
    urgent = sorted(wants, key=attrgetter("priority"), reverse=True)
    by_piece = {want.piece: want for want in urgent}
    for want in urgent:
        if most <= 0 or want.piece not in by_piece:
            continue
        end, limit = want.piece, 1 if want.single else length
        while (
            end - want.piece < limit
            and (each := by_piece.get(end)) is not None
            and each.priority is want.priority
            and (each is want or not each.single)
        ):
            del by_piece[end]
            end += 1
        most -= 1
        yield range(want.piece, end)


class Wants:
    """The wants of one torrent, in the order in which they were wanted first, and its readers.

    Args:
        changed: called with pieces that are wanted by more users, or by fewer.
        gone: called with wants that no user has any more, and that did not arrive.
    """

    def __init__(
        self,
        changed: Callable[[Collection[int]], None],
        gone: Callable[[list[Want]], None],
        tuning: Tuning,
    ) -> None:
        self._changed = changed
        self._gone = gone
        self._tuning = tuning
        self._wants: dict[int, Want] = {}
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._recent_bytes = 0

    @property
    def table(self) -> Mapping[int, Want]:
        """All of them, by piece."""
        return self._wants

    @property
    def read(self) -> list[int]:
        """The pieces that readers want."""
        return [want.piece for want in self._wants.values() if want.waiting or want.ahead]

    def has_reader(self, piece: int) -> bool:
        """Whether a reader wants a piece."""
        want = self._wants.get(piece)
        return want is not None and bool(want.waiting or want.ahead)

    # --- readers ----------------------------------------------------------------------------

    async def get(
        self, pieces: Iterable[int], *, keep: bool = True, ahead: bool = False
    ) -> dict[int, bytes | None]:
        """Wait for pieces; None stands for one that is in the files by now.

        Cancellation lets go of those that nothing else wants.

        Args:
            keep: if false, only wait: no piece is kept in memory for this caller.
            ahead: no guest waits yet.

        Raises:
            P2pcloopError: what `fail` was told.
        """
        found: dict[int, bytes | None] = {}
        waits: dict[int, Want] = {}
        now = trio.current_time()
        for piece in pieces:
            if piece in self._recent:
                self._recent.move_to_end(piece)
                found[piece] = self._recent[piece] if keep else None
            else:
                waits[piece] = self._wants.setdefault(piece, Want(piece, now))
        if not waits:
            await trio.lowlevel.checkpoint()
        try:
            self._join(waits, keep=keep, ahead=ahead)
            await self._wait(waits, ahead=ahead)
            for piece, want in waits.items():
                if want.error is not None:
                    raise want.error
                found[piece] = want.data
        finally:
            self._leave(waits, ahead=ahead)
        return found

    def _join(self, waits: Mapping[int, Want], *, keep: bool, ahead: bool) -> None:
        now = trio.current_time()
        for want in waits.values():
            want.keep |= keep
            if ahead:
                want.ahead += 1
            else:
                want.demand_since = min(want.demand_since, now)
                want.waiting += 1
        self._changed(waits.keys())

    async def _wait(self, waits: Mapping[int, Want], *, ahead: bool) -> None:
        """Wait until all are done, and say once if it stalls; readahead has time."""
        left, told = list(waits.values()), ahead
        for want in waits.values():
            while not told and not want.done.is_set():
                with trio.move_on_after(self._tuning.stall):
                    await want.done.wait()
                    break
                before, left = left, [each for each in left if not each.done.is_set()]
                told = len(left) == len(before)
                if told:
                    for each in left:
                        each.stalled = True
                    self._changed([each.piece for each in left])
            await want.done.wait()

    def _leave(self, waits: Mapping[int, Want], *, ahead: bool) -> None:
        for want in waits.values():
            if ahead:
                want.ahead -= 1
            else:
                want.waiting -= 1
                if not want.waiting:
                    want.demand_since = math.inf
        self._drop(waits.values())

    # --- backfill ---------------------------------------------------------------------------

    def fill(self, pieces: Iterable[int], *, dial: bool, rest: bool = False) -> None:
        """Want pieces in idle time, until `unfill`.

        Args:
            dial: peers that the user named are tried for them.
            rest: servers are asked for the bytes that are missing, and peers for nothing.
        """
        now = trio.current_time()
        for piece in pieces:
            want = self._wants.setdefault(piece, Want(piece, now))
            want.fills += 1
            want.dials += dial
            want.rests += rest
        self._changed(())

    def unfill(self, pieces: Iterable[int], *, dial: bool, rest: bool = False) -> None:
        """Want pieces no more that `fill` was called with; those that arrived are gone already."""
        found = [self._wants[piece] for piece in pieces if piece in self._wants]
        for want in found:
            want.fills = max(0, want.fills - 1)
            want.dials = max(0, want.dials - dial)
            want.rests = max(0, want.rests - rest)
        self._drop(found)

    def _drop(self, wants: Iterable[Want]) -> None:
        """Forget those that are unwanted by now."""
        left = [each for each in wants if self._wants.get(each.piece) is each]
        gone = [each for each in left if each.unwanted]
        for want in gone:
            del self._wants[want.piece]
        if gone:
            self._gone(gone)
        if left:
            self._changed([each.piece for each in left if not each.unwanted])

    # --- what arrives -----------------------------------------------------------------------

    def deliver(self, piece: int, data: bytes | None) -> Want | None:
        """Give a verified piece to all who wait for it, and keep it a while.

        Args:
            data: None where it is durable, to be read from the files.

        Returns:
            The want, which is no more.
        """
        if data is not None:
            self._keep(piece, data)
        want = self._wants.pop(piece, None)
        if want is not None:
            want.data = data if want.keep else None
            want.done.set()
        return want

    def arrived(self, piece: int) -> None:
        """Forget what backfill wants of a piece that arrived; readers are given it yet."""
        want = self._wants.get(piece)
        if want is not None:
            want.fills = want.dials = want.rests = 0
            if want.unwanted:
                del self._wants[piece]
                want.done.set()

    def fail(self, error: P2pcloopError) -> None:
        """Tell all readers that their pieces cannot be had."""
        for want in [each for each in self._wants.values() if each.waiting or each.ahead]:
            del self._wants[want.piece]
            want.error = error
            want.done.set()

    def recent(self, pieces: Iterable[int]) -> list[bytes] | None:
        """All of these, where each arrived lately."""
        found = []
        for piece in pieces:
            if piece not in self._recent:
                return None
            self._recent.move_to_end(piece)
            found.append(self._recent[piece])
        return found

    def forget(self, pieces: Iterable[int]) -> None:
        """Keep pieces no longer."""
        for piece in pieces:
            self._recent_bytes -= len(self._recent.pop(piece, b""))

    def forget_unless(self, is_here: Callable[[int], bool]) -> None:
        """Keep only pieces that are here: one that is lost is not had again from memory."""
        self.forget([piece for piece in self._recent if not is_here(piece)])

    def _keep(self, piece: int, data: bytes) -> None:
        self._recent_bytes += len(data) - len(self._recent.pop(piece, b""))
        self._recent[piece] = data
        while self._recent_bytes > self._tuning.recent:
            self._recent_bytes -= len(self._recent.popitem(last=False)[1])
