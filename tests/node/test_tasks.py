"""What looks after things that are under way, and what sends frames."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.engine.fetch.health import Silence
from p2pcloopd.frame_sender import FrameSender
from p2pcloopd.tasks import Watch

FRAME = bytes(range(256)) * 2048  # of 512 KiB: more than a socket takes at once


# pytest-trio uses a clock that is an argument of the test, not one of `usefixtures`.
@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    mock_clock.autojump_threshold = 0
    return mock_clock


async def test_each_item_is_looked_at_in_its_time(clock: MockClock) -> None:
    looked: list[tuple[str, float]] = []
    begun = trio.current_time()

    def look(item: str) -> float:
        looked.append((item, round(trio.current_time() - begun, 1)))
        if item == "once":
            watch.remove(item)
        return 3

    watch = Watch(look)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        watch.add("late", 5)
        await trio.sleep(1)
        watch.add("soon", 1)  # before the one that is waited for
        watch.add("never", 2)
        watch.add("once", 1)
        await trio.sleep(0.5)
        watch.remove("never")
        await trio.sleep(7)
        nursery.cancel_scope.cancel()
    assert sorted(looked, key=lambda each: each[1]) == [
        ("soon", 2), ("once", 2), ("late", 5), ("soon", 5), ("late", 8), ("soon", 8),
    ]  # fmt: skip


async def test_work_ends_in_silence_and_not_before(clock: MockClock) -> None:
    heard = 0
    ended: dict[str, float] = {}
    silence = Silence(lambda: heard, 1)
    begun = trio.current_time()

    async def wait(name: str, seconds: float) -> None:
        async def work() -> str:
            await trio.sleep(seconds)
            return name

        found = await silence.ends(work)
        ended[name] = round(trio.current_time() - begun, 1)
        assert found == (name if ended[name] == seconds else None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(silence.run)
        async with trio.open_nursery() as works:
            works.start_soon(wait, "short", 0.9)
            works.start_soon(wait, "long", 2.5)
            works.start_soon(wait, "endless", 100)
            for _ in range(3):
                await trio.sleep(0.8)
                heard += 1
        nursery.cancel_scope.cancel()
    assert ended == {"short": 0.9, "long": 2.5, "endless": 4}, "something was heard until 2.4"


async def test_frames_arrive_whole_and_in_order_whatever_is_cancelled() -> None:
    ours, theirs = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    reader = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    sender = FrameSender(stream)
    async with stream, reader, trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        sender.send_nowait(b"first")
        assert await reader.receive_some() == b"first", "a small one is there at once"
        for number in (1, 2):
            await sender.send(b"%d" % number + FRAME)
            with trio.move_on_after(0) as scope:
                await sender.send(b"cancelled")
            assert scope.cancelled_caught, "the one before is not out yet"
            sender.send_nowait(b"behind")
            expected = b"%d" % number + FRAME + b"behind"
            found = bytearray()
            while len(found) < len(expected):
                found += await reader.receive_some()
            assert found == expected
            await sender.flush()
        nursery.cancel_scope.cancel()


async def test_a_task_that_is_cancelled_sends_nothing() -> None:
    """Nor where it would not have to wait: what it tells is of an operation that is over."""
    ours, theirs = socket.socketpair()
    stream, reader = (
        trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (ours, theirs)
    )
    sender = FrameSender(stream)
    async with stream, reader:
        with trio.CancelScope() as scope:
            scope.cancel()
            await sender.send(b"late")
        sender.send_nowait(b"next")
        assert await reader.receive_some() == b"next"


async def test_who_sends_learns_that_the_other_side_hung_up() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    sender = FrameSender(stream)
    async with stream:
        sender.send_nowait(b"lost")
        with pytest.raises(trio.BrokenResourceError):
            await sender.run()
