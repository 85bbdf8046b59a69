"""What a node makes of the HTTP servers of one layer, by what they did."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.errors import NotHereError, UnreachableError
from p2pcloop.formats.manifest import LayerRef
from p2pcloopd.engine.fetch.tuning import TUNING
from p2pcloopd.http.client import RangesIgnoredError, WrongRangeError
from p2pcloopd.http.mirrors import MAX_WHOLE, MirrorReader
from p2pcloopd.http.wire import Wire
from p2pcloopd.node.servers import LayerServers
from tests.support.scripted_files import ScriptedFiles


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
    of_layer, [files] = servers(size)
    files.error = RangesIgnoredError("http://0/x: the server ignores ranges")
    with pytest.raises(UnreachableError):
        await of_layer.get(0, 10, spread=True)
    mock_clock.jump(1)
    assert of_layer.ready_at() == math.inf
    assert (of_layer.whole_ready_at() <= trio.current_time()) is whole
    [fault] = of_layer.faults()
    assert fault.startswith("http://0/ (")
    assert "ignores ranges" in fault
    assert ("is not taken whole" in fault) is not whole


async def test_a_server_that_always_sends_another_range_is_taken_whole(
    mock_clock: MockClock,
) -> None:
    of_layer, [files] = servers(1 << 20)
    wrong = WrongRangeError("http://0/x: asked for bytes 0-9, got 'bytes 0-4/9'")
    for errors in ([wrong, None], [wrong, wrong]):  # one alone may be an accident
        assert of_layer.whole_ready_at() == math.inf
        for error in errors:
            files.error = error
            with suppress(UnreachableError):
                await of_layer.get(0, 10)
            mock_clock.jump(31)
    assert of_layer.whole_ready_at() <= trio.current_time()
    assert of_layer.ready_at() == math.inf
    [fault] = of_layer.faults()
    assert "got 'bytes 0-4/9'" in fault


async def test_whoever_has_it_gives_it(mock_clock: MockClock) -> None:
    of_layer, [first, second, third] = servers(1 << 20, count=3)
    first.error, second.error = NotHereError("404"), UnreachableError("refused")
    came = await of_layer.get(0, 10, spread=True)
    assert (came.data, came.base) == (bytes(10), "http://2/")
    third.error = NotHereError("404")
    mock_clock.jump(0.5)  # the second is left alone
    with pytest.raises(NotHereError):
        await of_layer.get(0, 10, spread=True)
    assert second.asked == 1
    mock_clock.jump(1)
    with pytest.raises(UnreachableError):  # another may have it yet
        await of_layer.get(0, 10, spread=True)
    assert of_layer.ready_at() <= trio.current_time()  # those that lack it may have something else


async def test_who_is_awaited_is_named_where_nothing_is_wrong() -> None:
    of_layer, _ = servers(1 << 20, count=2)
    first, second = of_layer.faults()
    assert (first.split()[0], second.split()[0]) == ("http://0/", "http://1/")


async def test_who_lies_is_asked_for_nothing_of_the_layer_again() -> None:
    of_layer, [first, second] = servers(1 << 20, count=2)
    came = await of_layer.get(0, 10, spread=True)
    came.refuse()
    came.refuse()
    assert (await of_layer.get(0, 10, spread=True)).base != came.base
    assert {first.asked, second.asked} == {1}
    assert of_layer.faults() == [f"{came.base} (has wrong bytes of it)"]
