"""Prefetch for a guest: the chunks of a profile, else the chunks that follow its reads.

What a resumed guest touches after its first answer is not asked for before that: it would take the
line from what the answer lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.profile import Touch, divide_touches
from p2pcloop.image.ahead import ChunkKey, chunks_in_order, following_chunk, missing_chunks
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloopd.block.arrivals import Arrivals
from p2pcloopd.block.supplier import Caller, Supplier

_log = logging.getLogger(__name__)

_FEW_PAGES = 4
"""Pages of chunk tables that are fetched at once, as for a read; later ones follow those."""


ANSWER_SECONDS = 5.0
"""After so long a guest that has not answered is not waited for any more: it may not answer at all,
and wait for what comes later."""


class Prefetch:
    """Fetches the chunks of a profile before the guest reads them, in order of first touch.

    Attributes:
        fetched: the chunks fetched this way, with their stored bytes.
        arrivals: of the profile's chunks.
        answered: set once a resumed guest has answered.
    """

    def __init__(self, device: ImageDevice, client: Caller, supplier: Supplier) -> None:
        self.arrivals = Arrivals()
        self.answered = trio.Event()
        self.fetched: dict[ChunkKey, int] = {}
        self._device = device
        self._client = client
        self._supplier = supplier

    async def run(self, touches: Sequence[Touch]) -> None:
        """Return when all is here. Errors are only logged: a read of the guest meets them
        itself."""
        try:
            first, later = divide_touches(touches)
            await self._fetch(first, self.arrivals.expect, self.arrivals.add)
            self.arrivals.end_first()
            if later:
                # A chunk of what comes later is three times as large as one of the layers below.
                self._device.image.rests = True
                await self.answer()
                self._device.image.rests = False
                await self._fetch(later, lambda _: None, self.arrivals.add_more)
        except P2pcloopError as err:
            _log.warning("nothing more is prefetched for the guest: %s", err)
        finally:
            self.arrivals.end()

    async def answer(self) -> None:
        """Return once a resumed guest has answered, or is not waited for any more."""
        with trio.move_on_after(ANSWER_SECONDS):
            await self.answered.wait()

    async def follow(self) -> None:
        """Fetch the following chunks wherever a guest reads chunk after chunk; never returns."""
        image = self._device.image

        def record(layer: int, number: int) -> None:
            wanted = following_chunk(image, layer, number)
            if wanted is not None:
                nursery.start_soon(fetch, wanted, (layer, number + 1))

        async def fetch(wanted: ByteRange, chunk: ChunkKey) -> None:
            try:
                await self._stream([wanted], {wanted: chunk}, guess=True)
            except P2pcloopError as err:
                _log.info("the next chunk is not prefetched: %s", err)

        async with trio.open_nursery() as nursery:
            image.notify_touches(record)
            try:
                await trio.sleep_forever()
            finally:
                image.notify_touches(lambda _layer, _number: None)

    async def fill(self, layers: Iterable[LayerRef], rate: int) -> None:
        """Backfill: return when all of some layers is here, fetched in idle time.

        Args:
            rate: bytes a second at most, 0 for no limit.
        """
        try:
            for layer in layers:
                await self._client.call("fill", torrent=layer.torrent, rate=rate)
        except P2pcloopError as err:
            _log.warning("the rest of the image is not fetched: %s", err)

    async def _fetch(
        self,
        touches: Sequence[Touch],
        expect: Callable[[int], None],
        arrived: Callable[[int], None],
    ) -> None:
        image = self._device.image
        chunks = chunks_in_order(self._device, touches)
        while True:
            try:
                missing = missing_chunks(image, chunks)
            except Missing as pages:
                if len(pages.ranges) <= _FEW_PAGES:
                    await self._supplier.supply(pages)
                else:
                    await self._stream(pages.ranges, {})
            else:
                expect(sum(wanted.length for wanted in missing))
                await self._stream(list(missing), missing, arrived=arrived)
                return

    async def _stream(
        self,
        ranges: Sequence[ByteRange],
        chunks: dict[ByteRange, ChunkKey],
        *,
        guess: bool = False,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> None:
        def receive(event: str, fields: dict[str, Any]) -> None:
            if event == "data":
                wanted = ranges[fields["number"]]
                self._supplier.deliver(wanted, fields["data"])
                if wanted in chunks:
                    self.fetched[chunks[wanted]] = wanted.length
                    self._device.image.arrived(*chunks[wanted])
                arrived(wanted.length)

        if ranges:
            asked = [[wanted.torrent, wanted.offset, wanted.length] for wanted in ranges]
            await self._client.call("stream", receive, ranges=asked, guess=guess)

    def report(self) -> dict[str, Any]:
        """Report what was prefetched, and what of it was never read; in stored bytes."""
        touched = self._device.image.touched
        return {
            "chunks": len(self.fetched),
            "bytes": sum(self.fetched.values()),
            "unused_bytes": sum(size for key, size in self.fetched.items() if not touched(*key)),
        }
