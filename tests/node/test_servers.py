"""What a node makes of the HTTP servers of one layer, by what they did."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.errors import NotHereError, UnreachableError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.mirror import MirrorPath
from p2pcloopd.engine.fetch.tuning import TUNING
from p2pcloopd.http.client import RangesIgnoredError, Span, Take
from p2pcloopd.http.mirrors import MAX_WHOLE, MirrorReader
from p2pcloopd.http.wire import Wire
from p2pcloopd.node.servers import LayerServers


class Scripted:
    """Files that answer, or raise, what `error` says (p2pcloopd.http.mirrors.Files)."""

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


def layer(size: int) -> LayerRef:
    return LayerRef(b"l" * 32, b"t" * 20, 4096, 512, size - 4096, 1 << 14)


def servers(size: int, *, count: int = 1) -> tuple[LayerServers, list[ScriptedFiles]]:
    """So many mirrors of a layer of `size` bytes."""
    files = [ScriptedFiles() for _ in range(count)]
    mirrors = [MirrorReader(f"http://{number}/", each) for number, each in enumerate(files)]
    return LayerServers(layer(size), Wire(), TUNING, mirrors), files


@pytest.mark.parametrize(
    ("size", "whole"), [(MAX_WHOLE, True), (MAX_WHOLE + 1, False)], ids=["a CD", "a DVD"]
)
async def test_whole_files_are_taken_of_layers_that_are_small_enough(
    size: int, whole: bool, mock_clock: MockClock
) -> None:
    early, [files] = servers(size)
    files.error = RangesIgnoredError("http://0/x: the server ignores ranges")
    with pytest.raises(UnreachableError):
        await early.get(0, 10, spread=True)
    mock_clock.jump(1)
    assert early.ready_at() == math.inf
    assert (early.whole_ready_at() <= trio.current_time()) is whole
    [fault] = early.faults()
    assert fault.startswith("http://0/ (")
    assert "ignores ranges" in fault
    assert ("is not taken whole" in fault) is not whole


async def test_whoever_has_it_gives_it(mock_clock: MockClock) -> None:
    early, [first, second, third] = servers(1 << 20, count=3)
    first.error, second.error = NotHereError("404"), UnreachableError("refused")
    came = await early.get(0, 10, spread=True)
    assert (came.data, came.base) == (bytes(10), "http://2/")
    third.error = NotHereError("404")
    mock_clock.jump(0.5)  # the second is left alone
    with pytest.raises(NotHereError):
        await early.get(0, 10, spread=True)
    assert second.asked == 1
    mock_clock.jump(1)
    with pytest.raises(UnreachableError):  # somebody may have it yet
        await early.get(0, 10, spread=True)
    assert early.ready_at() <= trio.current_time()  # those that lack it may have something else


async def test_who_lies_is_asked_for_nothing_of_the_layer_again() -> None:
    early, [first, second] = servers(1 << 20, count=2)
    came = await early.get(0, 10, spread=True)
    came.refuse()
    came.refuse()
    assert (await early.get(0, 10, spread=True)).base != came.base
    assert {first.asked, second.asked} == {1}
    assert early.faults() == [f"{came.base} (has wrong bytes of it)"]
