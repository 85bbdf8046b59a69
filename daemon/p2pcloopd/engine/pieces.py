"""Who waits for which piece. Two readers of one piece share one fetch.

Some wait because a guest does, others ahead of it. What the former want is asked for at once, what
the latter want is expected, until somebody (engine/ahead.py) has it asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from p2pcloop.errors import P2pcloopError

RECENT_BYTES = 16 << 20
"""Pieces that came lately are kept, up to this: a chunk's neighbour often wants the same one."""

STALL_SECONDS = 1
"""A read stalls that got nothing new for so long."""


@dataclass(slots=True)
class _Wanted:
    """One piece that is being brought, how many readers wait for it, whether one of them has
    somebody waiting (`urgent`), and whether one keeps it."""

    readers: int = 0
    urgent: bool = False
    kept: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    data: bytes | None = None
    error: P2pcloopError | None = None


class Pieces:
    """The waiting readers of one torrent, and the pieces that came lately.

    Args:
        raise_: called with pieces that are to be asked for.
        hasten: called with pieces that were asked for ahead, and that somebody waits for now.
        lower: called with pieces that somebody wanted and nobody wants any more.
        stall: called with the pieces that a read lacks when it stalls, once a read.
        expect: called when pieces are expected that nobody wanted before.
    """

    def __init__(
        self,
        raise_: Callable[[list[int]], None],
        hasten: Callable[[list[int]], None],
        lower: Callable[[list[int]], None],
        stall: Callable[[list[int]], None],
        expect: Callable[[], None],
    ) -> None:
        self._raise = raise_
        self._hasten = hasten
        self._expect = expect
        self._lower = lower
        self._stall = stall
        self._wanted: dict[int, _Wanted] = {}
        self._expected: dict[int, None] = {}
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._recent_bytes = 0

    @property
    def wanted(self) -> list[int]:
        """The pieces that somebody waits for."""
        return list(self._wanted)

    @property
    def asked(self) -> list[int]:
        """Those of them that were asked for."""
        return [piece for piece in self._wanted if piece not in self._expected]

    @property
    def expected(self) -> list[int]:
        """The others, in the order in which they were wanted first."""
        return list(self._expected)

    def __contains__(self, piece: int) -> bool:
        return piece in self._wanted

    def recent(self, pieces: Iterable[int]) -> list[bytes] | None:
        """All of these, where each came lately."""
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

    def ask(self, pieces: Iterable[int]) -> None:
        """Have expected pieces asked for."""
        fresh = [piece for piece in pieces if piece in self._expected]
        for piece in fresh:
            del self._expected[piece]
        if fresh:
            self._raise(fresh)

    def urgent(self, piece: int) -> bool:
        """Whether somebody waits for a piece who is kept by it now, not only ahead of a need."""
        wanted = self._wanted.get(piece)
        return wanted is not None and wanted.urgent

    async def get(
        self, pieces: Iterable[int], *, keep: bool = True, ahead: bool = False, first: bool = False
    ) -> dict[int, bytes | None]:
        """Wait for pieces; None stands for one that is in the files by now.

        Cancellation lets go of those that nobody else waits for.

        Args:
            keep: if false, only wait: no piece is kept in memory for this caller.
            ahead: nobody is kept waiting yet; a reader who is comes first.
            first: of what is expected, these come before all others.

        Raises:
            P2pcloopError: what `fail` was told.
        """
        found: dict[int, bytes | None] = {}
        waits: dict[int, _Wanted] = {}
        for piece in pieces:
            if piece in self._recent:
                self._recent.move_to_end(piece)
                found[piece] = self._recent[piece] if keep else None
            else:
                waits[piece] = self._wanted.setdefault(piece, _Wanted())
        try:
            self._want(waits, keep=keep, ahead=ahead)
            if first:
                again = [piece for piece in waits if piece in self._expected]
                self._expected = dict.fromkeys(again) | self._expected
            await self._wait(waits, ahead=ahead)
            for piece, wanted in waits.items():
                if wanted.error is not None:
                    raise wanted.error
                found[piece] = wanted.data
        finally:
            self._let_go(waits)
        return found

    def _want(self, waits: dict[int, _Wanted], *, keep: bool, ahead: bool) -> None:
        """Note one more reader of pieces; have asked for, or expected, what nobody wanted so."""
        fresh, hastened = [], []
        for piece, wanted in waits.items():
            if not wanted.readers or (piece in self._expected and not ahead):
                fresh.append(piece)
            elif not (ahead or wanted.urgent):
                hastened.append(piece)
            wanted.readers += 1
            wanted.urgent |= not ahead
            wanted.kept |= keep
        if ahead and fresh:
            self._expected.update(dict.fromkeys(fresh))
            self._expect()
        elif fresh:
            for piece in fresh:
                self._expected.pop(piece, None)
            self._raise(fresh)
        if hastened:
            self._hasten(hastened)

    async def _wait(self, waits: dict[int, _Wanted], *, ahead: bool) -> None:
        """Wait until all are done, and tell if it stalls; whoever is ahead has time."""
        left, stalled = list(waits), ahead
        for wanted in waits.values():
            while not stalled and not wanted.done.is_set():
                with trio.move_on_after(STALL_SECONDS):
                    await wanted.done.wait()
                    break
                before, left = left, [p for p in left if not waits[p].done.is_set()]
                stalled = len(left) == len(before)
                if stalled:
                    self._stall(left)
            await wanted.done.wait()

    def _let_go(self, waits: dict[int, _Wanted]) -> None:
        unwanted = []
        for piece, wanted in waits.items():
            wanted.readers -= 1
            if not wanted.readers and self._wanted.get(piece) is wanted:
                del self._wanted[piece]
                self._expected.pop(piece, None)
                unwanted.append(piece)
        if unwanted:
            self._lower(unwanted)

    def deliver(self, piece: int, data: bytes | None) -> None:
        """Give a verified piece to all who wait for it, and keep it a while.

        Args:
            data: None where it is durable, to be read from the files.
        """
        if data is not None:
            self._keep(piece, data)
        wanted = self._wanted.pop(piece, None)
        self._expected.pop(piece, None)
        if wanted is not None:
            wanted.data = data if wanted.kept else None
            wanted.done.set()

    def _keep(self, piece: int, data: bytes) -> None:
        self._recent_bytes += len(data) - len(self._recent.pop(piece, b""))
        self._recent[piece] = data
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popitem(last=False)[1])

    def fail(self, error: P2pcloopError) -> None:
        """Tell all who wait that their pieces cannot be had."""
        wanted, self._wanted = self._wanted, {}
        self._expected.clear()
        for entry in wanted.values():
            entry.error = error
            entry.done.set()
