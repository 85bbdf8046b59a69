"""Keeps the decoded chunks of a boot for the next one (store/kept.py)."""

from __future__ import annotations

from functools import partial

import trio

from p2pcloop.image.merged import MergedImage
from p2pcloop.store.home import Home
from p2pcloop.store.kept import KeptChunks, keep_chunks

PAUSE_SECONDS = 15.0
"""A guest that reads nothing new for so long has booted, or waits for bytes: then there will be
more to keep at its next boot."""

_WORTH = 16
"""The chunks are kept anew once one byte of so many is new."""


class Keeper:
    """Keeps what a guest's boot has decoded, once."""

    def __init__(self, home: Home, image: MergedImage, kept: KeptChunks) -> None:
        """`kept` has what is kept so far."""
        self._home = home
        self._image = image
        self._kept = kept
        self._done = False

    async def run(self) -> None:
        """Return once the guest has booted, and its chunks are kept."""
        touched = 0
        while not touched or touched != self._image.chunks_touched:
            touched = self._image.chunks_touched
            await trio.sleep(PAUSE_SECONDS)
        await self.keep()

    async def keep(self) -> None:
        """Keep the chunks that are decoded now, unless that was done, or nearly all are kept."""
        if self._done:
            return
        self._done = True
        chunks = self._image.contents()
        new = sum(len(content) for chunk_id, content in chunks if chunk_id not in self._kept)
        if new * _WORTH > sum(len(content) for _, content in chunks):
            work = partial(_keep, self._home, self._image.image_id, self._kept, chunks)
            await trio.to_thread.run_sync(work)


def _keep(
    home: Home, image_id: bytes, kept: KeptChunks, chunks: list[tuple[bytes, memoryview]]
) -> None:
    keep_chunks(home, image_id, kept.joined(chunks))
