"""Staying interested in peers that choke whoever wants nothing.

A reader wants a piece, has it, and wants nothing until it reads on. Other nodes of ours do not
mind. Foreign clients do: aria2 chokes at once whoever says "not interested", and where
"interested" comes right behind it, it looks again after 10 s only; transmission looks every 10 s.
A hundred reads, one after the other, take minutes then.

So where only such peers can be asked, and as long as somebody reads, more is asked for behind what
is read: a small torrent whole, of a larger one a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import trio

from p2pcloopd.engine.transfer import Transfer

LINGER_SECONDS = 10.0
"""So long after the last read: transmission looks that often who is interested."""

LOOK_SECONDS = 1.0
"""Between two looks at whether it is needed."""


class Interest:
    """Keeps pieces of one torrent asked for while somebody reads it."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._asked: set[int] = set()

    async def run(self) -> None:
        """Stay interested whenever somebody reads, for ever."""
        while True:
            await self._transfer.read.wait()
            self._transfer.read = trio.Event()
            try:
                await self._stay()
            finally:
                self._transfer.let_go(self._asked)
                self._asked.clear()

    async def _stay(self) -> None:
        transfer = self._transfer
        absent: Iterator[int] = iter(())
        while (left := transfer.read_at + LINGER_SECONDS - trio.current_time()) > 0:
            changed = transfer.changed
            self._asked = {piece for piece in self._asked if not transfer.has(piece)}
            room = self._window() - len(self._asked) if self._helps() else 0
            fresh = list(islice(absent, max(0, room)))
            if room > 0 and not fresh:
                if not self._asked and transfer.complete():
                    return
                absent = self._absent()
                fresh = list(islice(absent, room))
            transfer.ask_spare(fresh)
            self._asked.update(fresh)
            with trio.move_on_after(min(left, LOOK_SECONDS)):
                await changed.wait()

    def _helps(self) -> bool:
        """Whether only foreign clients can be asked, which may choke us."""
        transfer = self._transfer
        alone = transfer.running and not transfer.crowd and not transfer.direct.usable()
        return alone and transfer.disk is not None and transfer.foreign()

    def _window(self) -> int:
        """How many pieces are asked for at once: one where a reader waits and would wait longer."""
        layout, window = self._transfer.stored.layout, self._transfer.window()
        if self._transfer.demand.busy and layout.total_size > window:
            return 1
        return window // layout.piece_length + 1

    def _absent(self) -> Iterator[int]:
        """The pieces that are not here when they are come to, from the last read one on."""
        count, last = self._transfer.stored.layout.pieces, self._transfer.last_read
        for piece in chain(range(last, count), range(last)):
            if piece not in self._asked and not self._transfer.is_coming(piece):
                yield piece
