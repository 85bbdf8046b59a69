"""Flushes that share: each caller's writes are durable when its call returns, errors reach all."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from p2pcloop.errors import StorageError
from p2pcloopd.block.shared_flush import SharedFlush
from tests.support.memory_device import MemoryDevice
from tests.support.waiting import BOUND


class SlowDevice(MemoryDevice):
    """Each flush waits on its worker thread until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__(4096)
        self.go_on = threading.Semaphore(0)
        self.begun = 0

    def prepare_flush(self) -> Callable[[], None]:
        self.begun += 1
        make_durable = super().prepare_flush()

        def wait_and_make_durable() -> None:
            assert self.go_on.acquire(timeout=BOUND)
            make_durable()

        return wait_and_make_durable

    def put(self, data: bytes) -> None:
        self.write(0, [memoryview(data * 512)])


async def test_one_flush_for_all_that_came_while_another_ran() -> None:
    device = SlowDevice()
    shared = SharedFlush(device)
    async with trio.open_nursery() as nursery:
        device.put(b"1")
        nursery.start_soon(shared.flush)
        await trio.testing.wait_all_tasks_blocked()
        device.put(b"2")
        async with trio.open_nursery() as followers:
            for _ in range(10):
                followers.start_soon(shared.flush)
            await trio.testing.wait_all_tasks_blocked()
            assert device.begun == 1
            device.go_on.release(2)
        assert device.durable[:1] == b"2"
        assert device.begun == 2


async def test_failure_reaches_all_that_shared_and_nobody_later() -> None:
    device = SlowDevice()
    shared = SharedFlush(device)
    failed = 0

    async def expect_failure() -> None:
        nonlocal failed
        with pytest.raises(StorageError, match="bad disk"):
            await shared.flush()
        failed += 1

    device.failures["flush"] = StorageError("bad disk", errno=errno.EIO)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(expect_failure)
        await trio.testing.wait_all_tasks_blocked()
        device.go_on.release(2)
    assert failed == 5
    del device.failures["flush"]
    device.go_on.release()
    device.put(b"x")
    await shared.flush()
    assert device.durable == device.content


async def test_flush_that_was_cancelled_before_it_began_covers_nobody() -> None:
    device = SlowDevice()
    shared = SharedFlush(device)
    device.put(b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await shared.flush()
    device.go_on.release()
    await shared.flush()
    assert device.durable == device.content
