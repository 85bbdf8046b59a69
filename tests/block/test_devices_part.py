"""What QEMU wrote of a guest's devices, on its way to the guest's process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloop.errors import CorruptError
from p2pcloop.formats.machine_state import Part
from p2pcloop.formats.profile import Touch
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.arrivals import STALL_SECONDS, Arrivals
from p2pcloopd.block.devices_part import hand_over
from p2pcloopd.block.spec import DevicesPart
from tests.support.memory_device import MemoryBackend, MemoryDevice

START, LENGTH = 3 * BLOCK_SIZE, 2 * BLOCK_SIZE + 7
CONTENT = os.urandom(6 * BLOCK_SIZE)
WANTED = CONTENT[START : START + LENGTH]


@pytest.fixture
def devices() -> Iterator[DevicesPart]:
    file = os.memfd_create("devices")
    yield DevicesPart(Part(START, LENGTH), file)
    os.close(file)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(MemoryDevice(CONTENT))


def content(devices: DevicesPart) -> bytes:
    return os.pread(devices.file, len(CONTENT), 0)


def test_it_is_read_before_all_else(devices: DevicesPart) -> None:
    assert devices.touch == Touch(3, 3, 0)


async def test_it_is_waited_for_while_the_prefetch_brings_it(
    devices: DevicesPart, backend: MemoryBackend
) -> None:
    device, arrivals = backend.device, Arrivals()
    device.withhold(START, LENGTH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over, device, backend, devices, arrivals)
        await wait_all_tasks_blocked()
        arrivals.expect(2 * BLOCK_SIZE)
        device.fetch(START, BLOCK_SIZE)
        arrivals.add(BLOCK_SIZE)
        await wait_all_tasks_blocked()
        assert content(devices) == b""
        device.fetch(START, LENGTH)
        arrivals.add(BLOCK_SIZE)
    assert content(devices) == WANTED
    assert not backend.asked, "it was on its way"


async def test_what_the_prefetch_did_not_bring_is_fetched(
    devices: DevicesPart, backend: MemoryBackend
) -> None:
    backend.automatic = True
    backend.device.withhold(START, LENGTH)
    arrivals = Arrivals()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over, backend.device, backend, devices, arrivals)
        await wait_all_tasks_blocked()
        arrivals.end()
    assert content(devices) == WANTED
    assert backend.asked


async def test_where_nothing_comes_it_is_read_so_that_the_user_is_told(
    devices: DevicesPart, backend: MemoryBackend, autojump_clock: MockClock
) -> None:
    backend.device.withhold(START, LENGTH)
    arrivals = Arrivals()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over, backend.device, backend, devices, arrivals)
        await trio.sleep(STALL_SECONDS - 1)
        assert not backend.asked
        await backend.wait_asked(1)
        await backend.fetch(START, LENGTH)
    assert content(devices) == WANTED


async def test_a_damaged_one_is_no_state(devices: DevicesPart, backend: MemoryBackend) -> None:
    backend.device.failures["read"] = CorruptError("wrong for good")
    with pytest.raises(CorruptError):
        await hand_over(backend.device, backend, devices, Arrivals())
    assert content(devices) == b""
