"""Keeps the decoded chunks of a boot for the next one (store/kept.py), and out of memory.

The block servers of one image all read what its boot reads. So what is kept they drop from memory:
a later read finds it in the file, whose pages they share.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import partial

import trio

from p2pcloop.image.merged import MergedImage
from p2pcloop.store.home import Home
from p2pcloop.store.kept import KeptChunks, add_chunks

PAUSE_SECONDS = 15.0
"""A guest that reads nothing new for so long has booted, or waits for bytes: then there will be
more to keep at its next boot."""

SHARE_SECONDS = 2.0
"""After so long without anything new the chunks in memory are shared; the boot may go on."""

_LOOK_SECONDS = 1.0

_WORTH = 16
"""The chunks are kept anew once one byte of so many is new."""

_WORTH_SHARING = 4
"""The same while the boot may go on: a boot that waits now and then writes few files."""


class Keeper:
    """Keeps what a guest's boot has decoded."""

    def __init__(self, home: Home, image: MergedImage, kept: KeptChunks) -> None:
        """`kept` has what is kept so far, and is where the image looks for it."""
        self._home = home
        self._image = image
        self._kept = kept
        self._done = False

    async def run(self) -> None:
        """Return once the guest has booted, and its chunks are kept."""
        touched, quiet = 0, 0.0
        while quiet < PAUSE_SECONDS:
            await trio.sleep(_LOOK_SECONDS)
            before, touched = touched, self._image.chunks_touched
            quiet = quiet + _LOOK_SECONDS if touched and touched == before else 0.0
            if quiet == SHARE_SECONDS:
                await self.share()
        await self.keep()
        self._release()

    async def share(self) -> None:
        """Keep the chunks that are decoded now, if many are new; drop from memory what is kept."""
        await self._keep(_WORTH_SHARING)
        self._release()

    async def keep(self) -> None:
        """Keep the chunks that are decoded now, unless that was done, or nearly all are kept."""
        if not self._done:
            self._done = True
            await self._keep(_WORTH)

    async def _keep(self, worth: int) -> None:
        self._kept.refresh()
        chunks = self._image.contents()
        new = self._kept.lacking(chunks)
        if new * worth > self._kept.size + new:
            work = partial(add_chunks, self._home, self._image.image_id, chunks, worth=worth)
            await trio.to_thread.run_sync(work)
            self._kept.refresh()

    def _release(self) -> None:
        if self._image.release_kept():
            # The chunks lie among small objects that stay, and free() gives back only the end.
            with suppress(OSError, AttributeError):  # a C library without it: not glibc
                ctypes.CDLL(None).malloc_trim(0)
