"""The files of a mirror that a test plays (p2pcloopd.http.mirrors.Files)."""

from __future__ import annotations

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.mirror import MirrorPath
from p2pcloopd.http.client import Span, Take


class ScriptedFiles:
    """Files of zeros, as many as are asked for.

    Attributes:
        error: what is raised instead; may be changed at any time.
        asked: how many requests there were.
    """

    def __init__(self) -> None:
        self.error: P2pcloopError | None = None
        self.asked = 0

    async def get(self, _path: MirrorPath, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.error is not None:
            raise self.error
        return bytes(limit)

    async def get_span(self, path: MirrorPath, span: Span) -> bytes:
        return await self.get(path, span.length)

    async def post(self, path: MirrorPath, limit: int) -> bytes:
        return await self.get(path, limit)

    async def get_parts(self, path: MirrorPath, size: int, take: Take) -> None:
        await take(await self.get(path, size))

    def rate(self) -> float | None:
        return None
