"""What a supplier tells the user while a guest waits."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.errors import StorageError
from p2pcloop.formats.timeline import decode_timeline
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.store.guests import GuestFolder, Waiting
from p2pcloop.store.home import Home
from p2pcloopd.block.fetched_file import FetchedFile
from p2pcloopd.block.supplier import _MAX_ARRIVED, FULL_RETRY_SECONDS, Supplier
from p2pcloopd.block.timeline_file import TimelineFile
from p2pcloopd.block.waiting_file import WaitingFile

WAITING = {"connected": False, "tried": ["192.0.2.1:6881: refused"], "peers": [], "seconds": 3}


class SilentNode:
    """A p2pcloopd that says `waiting` for each read, and answers once it is let."""

    def __init__(self) -> None:
        self.answer = trio.Event()
        self.tell: Callable[[str, dict[str, Any]], None]

    async def call(
        self, op: str, on_event: Callable[[str, dict[str, Any]], None] | None = None, **args: Any
    ) -> dict[str, Any]:
        assert op == "read"
        assert on_event is not None
        self.tell = on_event
        on_event("waiting", WAITING)
        await self.answer.wait()
        return {"data": bytes(args["length"])}


def ranges(*offsets: int) -> Missing:
    return Missing(tuple(ByteRange(bytes(20), offset, 4096) for offset in offsets))


async def test_a_wait_is_in_the_timeline(tmp_path: Path) -> None:
    node = SilentNode()
    timeline = TimelineFile(tmp_path / "timeline")
    supplier = Supplier(node, lambda _range, _data: None, timeline=timeline)
    node.answer.set()
    await supplier.supply(ranges(8192))
    [wait] = decode_timeline((tmp_path / "timeline").read_bytes()).waits
    assert wait.length == 4096


async def test_many_reads_that_wait_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    node = SilentNode()
    supplier = Supplier(node, lambda _range, _data: None)
    for wait in (1, 2):
        async with trio.open_nursery() as nursery:
            for offset in range(4):
                nursery.start_soon(supplier.supply, ranges(offset << 20, (offset << 20) + 8192))
            await trio.testing.wait_all_tasks_blocked()
            lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
            assert len(lines) == wait, "once for each time that nothing came"
            node.answer.set()
        node.answer = trio.Event()
    assert "192.0.2.1:6881: refused" in lines[-1]


async def test_what_a_guest_waits_for_and_what_came_is_told_to_other_programs(
    tmp_path: Path,
) -> None:
    guest = GuestFolder(Home.at(tmp_path), "g1")
    guest.path.mkdir(parents=True)
    node = SilentNode()
    supplier = Supplier(
        node,
        lambda _range, _data: None,
        WaitingFile(guest.waiting_path),
        FetchedFile(guest.fetched_path),
    )
    wanted = ranges(0)
    before = time.time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supplier.supply, wanted)
        await trio.testing.wait_all_tasks_blocked()
        waiting = guest.read_waiting()
        assert waiting is not None
        # It has waited for so long already, and waits on: the words have no number in them.
        assert waiting.what == "no peer reachable; tried: 192.0.2.1:6881: refused"
        assert before - 3 - 1e-3 <= waiting.since <= time.time() - 3
        assert guest.read_fetched() is None
        node.tell("waiting", WAITING | {"tried": ["192.0.2.1:6881: timed out"], "seconds": 12})
        assert guest.read_waiting() == Waiting(
            "no peer reachable; tried: 192.0.2.1:6881: timed out", waiting.since
        ), "the newest cause, and the same wait"
        node.answer.set()
    assert guest.read_waiting() is None
    supplier.deliver(wanted.ranges[0], bytes(4096))  # it was read ahead, too: it came once
    fetched = guest.read_fetched()
    assert fetched is not None
    assert fetched.count == 4096
    assert before - 1e-3 <= fetched.first <= time.time()


class NumberedNode:
    """A p2pcloopd that answers nothing, and notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.left: list[int] = []

    async def call(
        self, op: str, on_event: Callable[[str, dict[str, Any]], None] | None = None, **args: Any
    ) -> dict[str, Any]:
        assert (op, on_event is None, args["heal"]) == ("read", False, False)
        self.asked.append(args["offset"])
        try:
            await trio.sleep_forever()
        finally:
            self.left.append(args["offset"])
        raise AssertionError


async def test_ranges_are_asked_for_in_their_order() -> None:
    node = NumberedNode()
    supplier = Supplier(node, lambda _range, _data: None)
    for attempt in range(8):  # tasks that begin at once do so in one order or the other
        node.asked.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supplier.supply, ranges(*range(9)))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert node.asked == list(range(9)), attempt


async def test_a_range_is_not_waited_for_once_others_came_that_hold_the_same() -> None:
    node = NumberedNode()
    supplier = Supplier(node, lambda _range, _data: None)
    others = ranges(4096, 8192).ranges
    wanted = Missing([ByteRange(bytes(20), 0, 4096, instead=others)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supplier.supply, wanted)
        await trio.testing.wait_all_tasks_blocked()
        supplier.deliver(others[1], bytes(4096))
        supplier.deliver(others[1], bytes(4096))
        await trio.testing.wait_all_tasks_blocked()
        assert (node.asked, node.left) == ([0], [])
        supplier.deliver(others[0], bytes(4096))
    assert node.left == [0]


async def test_of_what_came_only_the_latest_is_remembered(tmp_path: Path) -> None:
    fetched = FetchedFile(tmp_path / "fetched")
    supplier = Supplier(SilentNode(), lambda _range, _data: None, fetched=fetched)
    count = _MAX_ARRIVED + 10
    for number in range(count):
        supplier.deliver(ranges(number << 20).ranges[0], bytes(4096))
    for number in (count - 1, count - _MAX_ARRIVED):
        supplier.deliver(ranges(number << 20).ranges[0], bytes(4096))
    assert len(supplier._arrived) == _MAX_ARRIVED
    assert (tmp_path / "fetched").read_bytes().split()[0] == b"%d" % (count * 4096)


class FullNode:
    """A p2pcloopd on a disk that has no room, `tries` times."""

    def __init__(self, tries: int, code: int) -> None:
        self.tries = tries
        self.code = code

    async def call(
        self, op: str, on_event: Callable[[str, dict[str, Any]], None] | None = None, **args: Any
    ) -> dict[str, Any]:
        assert (op, on_event is None) == ("read", False)
        await trio.lowlevel.checkpoint()
        if self.tries:
            self.tries -= 1
            raise StorageError("cannot write there", errno=self.code, hint="make room")
        return {"data": bytes(args["length"])}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_keeps_a_guest_waiting_and_is_told_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock, code: int
) -> None:
    taken: list[int] = []
    supplier = Supplier(FullNode(5, code), lambda wanted, _data: taken.append(wanted.offset))
    begun = autojump_clock.current_time()
    await supplier.supply(ranges(4096))
    assert taken == [4096]
    # Room is seen at the next try.
    assert autojump_clock.current_time() - begun == pytest.approx(5 * FULL_RETRY_SECONDS)
    lines = [r.getMessage() for r in caplog.records]
    assert lines == ["the guest waits for room: cannot write there; make room"]


async def test_another_error_of_the_disk_is_one() -> None:
    supplier = Supplier(FullNode(1, errno.EIO), lambda _range, _data: None)
    with pytest.raises(StorageError, match="cannot write there"):
        await supplier.supply(ranges(0))
