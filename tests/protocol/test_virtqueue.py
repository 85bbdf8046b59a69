"""The split virtqueue against a driver of ours, and against memory full of nonsense."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.protocol.virtqueue import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    MAX_QUEUE_SIZE,
    GuestMemory,
    MemoryRegion,
    Virtqueue,
    VirtqueueError,
)
from tests.support.vring import GUEST, INDIRECT, NEXT, USER, WRITE, Driver

SIZE = 1 << 18


@pytest.fixture
def driver() -> Driver:
    return Driver(memoryview(bytearray(SIZE)))


def test_chain_goes_round(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    assert queue.pop() is None
    asked, answer = driver.allocate(5, b"hello"), driver.allocate(7)
    head = driver.offer([(asked, 5, 0), (answer, 7, WRITE)])
    chain = queue.pop()
    assert chain is not None
    assert (chain.head, [bytes(view) for view in chain.readable]) == (head, [b"hello"])
    chain.writable[0][:] = b"goodbye"
    queue.push(chain, 7)
    assert driver.collect() == []
    assert queue.publish()
    assert driver.collect() == [(head, 7)]
    assert driver.bytes_at(answer, 7) == b"goodbye"
    assert not queue.publish()


def test_indices_wrap_and_order_is_free(driver: Driver) -> None:
    start = 0xFFF0
    struct.pack_into("<H", driver.memory, driver.available + 2, start)
    struct.pack_into("<H", driver.memory, driver.used + 2, start)
    driver.seen = start
    queue = driver.virtqueue(0, base=start)
    address = driver.allocate(1)
    for _ in range(40):
        heads = [driver.offer([(address, 1, WRITE)]) for _ in range(3)]
        chains = [queue.pop() for _ in heads]
        assert queue.pop() is None
        for chain in reversed(chains):
            assert chain is not None
            queue.push(chain, 1)
        queue.publish()
        assert [head for head, _ in driver.collect()] == heads[::-1]
    assert queue.next_available == (start + 120) & 0xFFFF


def test_indirect_table_after_direct_buffers(driver: Driver) -> None:
    queue = driver.virtqueue(F_INDIRECT_DESC)
    cells = [driver.allocate(16, bytes([n])) for n in range(40)]
    table = driver.table(
        [(cell, 1, 0) for cell in cells[1:30]] + [(c, 1, WRITE) for c in cells[30:]]
    )
    driver.offer([(cells[0], 1, 0), table])
    chain = queue.pop()
    assert chain is not None
    assert b"".join(chain.readable) == bytes(range(30))
    assert b"".join(chain.writable) == bytes(range(30, 40))


def test_buffer_across_regions() -> None:
    low, high = memoryview(bytearray(b"a" * 64)), memoryview(bytearray(b"b" * 64))
    memory = GuestMemory([MemoryRegion(64, 0, high), MemoryRegion(0, 64, low)])
    assert [bytes(view) for view in memory.find(60, 10)] == [b"aaaa", b"bbbbbb"]
    assert bytes(memory.find_ring(64, 1)) == b"a"
    for address, length in ((120, 9), (128, 1), (5, 0), (1 << 63, 4), (0, 1 << 32)):
        with pytest.raises(VirtqueueError):
            memory.find(address, length)
    with pytest.raises(VirtqueueError):
        memory.find_ring(60, 10)


def test_calls_are_suppressed_by_flag(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    address = driver.allocate(1)
    for wanted in (True, False, True):
        driver.want_calls(wanted=wanted)
        driver.offer([(address, 1, WRITE)])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        assert queue.publish() is wanted


def test_calls_are_suppressed_by_event_index(driver: Driver) -> None:
    queue = driver.virtqueue(F_EVENT_IDX)
    driver.want_call_after(2)  # that is, once the third chain is given back
    address = driver.allocate(1)
    called = []
    for _ in range(5):
        driver.offer([(address, 1, WRITE)])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        called.append(queue.publish())
    assert called == [False, False, True, False, False]


@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
def test_kicks_are_refused_and_wanted(features: int) -> None:
    driver = Driver(memoryview(bytearray(SIZE)), event_idx=bool(features))
    queue = driver.virtqueue(features)
    address = driver.allocate(1)
    assert not queue.want_kicks()
    assert driver.wants_kick()
    queue.refuse_kicks()
    driver.offer([(address, 1, WRITE)])
    assert not driver.wants_kick()
    assert queue.want_kicks()  # the chain came while kicks were refused
    assert queue.pop() is not None
    assert not queue.want_kicks()
    assert driver.wants_kick()


def test_goes_on_from_used_index(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    address = driver.allocate(1)
    for _ in range(2):
        driver.offer([(address, 1, WRITE)])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 1)
        queue.publish()
    driver.collect()
    head = driver.offer([(address, 1, WRITE)])
    successor = driver.virtqueue(0, base=queue.next_available)
    chain = successor.pop()
    assert chain is not None
    successor.push(chain, 1)
    successor.publish()
    assert driver.collect() == [(head, 1)]


def _loop(driver: Driver) -> None:
    driver.describe(0, GUEST, 1, NEXT, 1)
    driver.describe(1, GUEST, 1, NEXT, 0)


def _nested_table(driver: Driver) -> None:
    inner = driver.table([(GUEST, 1, 0)])
    driver.describe(0, *driver.table([inner]), 0)


def _read_after_write(driver: Driver) -> None:
    driver.describe(0, GUEST, 1, WRITE | NEXT, 1)
    driver.describe(1, GUEST, 1, 0, 0)


def _loop_in_table(driver: Driver) -> None:
    table = driver.allocate(16, struct.pack("<QIHH", GUEST, 1, NEXT, 0))
    driver.describe(0, table, 16, INDIRECT, 0)


@pytest.mark.parametrize(
    "break_it",
    [
        _loop,
        _nested_table,
        _loop_in_table,
        lambda driver: driver.describe(0, GUEST, 1, NEXT, driver.size),
        lambda driver: driver.describe(0, GUEST, 0, 0, 0),
        lambda driver: driver.describe(0, GUEST - 1, 2, 0, 0),
        lambda driver: driver.describe(0, GUEST + SIZE - 1, 2, WRITE, 0),
        lambda driver: driver.describe(0, (1 << 64) - 1, 2, 0, 0),
        lambda driver: driver.describe(0, GUEST, 17, INDIRECT, 0),
        lambda driver: driver.describe(0, GUEST, 0, INDIRECT, 0),
        lambda driver: driver.describe(0, GUEST, 16, INDIRECT | NEXT, 1),
        lambda driver: driver.describe(0, GUEST, 16 * (MAX_QUEUE_SIZE + 1), INDIRECT, 0),
        lambda driver: driver.describe(0, GUEST + SIZE, 16, INDIRECT, 0),
        lambda driver: (
            driver.describe(0, GUEST, 1, WRITE | NEXT, 1),
            driver.describe(1, GUEST, 1, 0, 0),
        ),
    ],
)
def test_broken_chain(driver: Driver, break_it: Callable[[Driver], None]) -> None:
    queue = driver.virtqueue(F_INDIRECT_DESC)
    break_it(driver)
    driver.make_available(0)
    with pytest.raises(VirtqueueError):
        queue.pop()


def test_head_outside_the_table(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    driver.make_available(driver.size)
    with pytest.raises(VirtqueueError):
        queue.pop()


def test_more_available_than_entries(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    driver.skip_available(driver.size + 1)
    with pytest.raises(VirtqueueError):
        queue.pop()


def test_more_in_flight_than_descriptors(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    driver.describe(0, GUEST, 1, WRITE, 0)
    for _ in range(driver.size):
        driver.make_available(0)
        assert queue.pop() is not None
    driver.make_available(0)
    with pytest.raises(VirtqueueError):
        queue.pop()


def test_indirect_table_that_was_not_negotiated(driver: Driver) -> None:
    queue = driver.virtqueue(0)
    driver.offer([driver.table([(GUEST, 1, 0)])])
    with pytest.raises(VirtqueueError):
        queue.pop()


@pytest.mark.parametrize(
    ("size", "addresses"),
    [
        (0, (0, 0x8000, 0xA000)),
        (3, (0, 0x8000, 0xA000)),
        (2 * MAX_QUEUE_SIZE, (0, 0x8000, 0xA000)),
        (8, (8, 0x8000, 0xA000)),
        (8, (0, 0x8001, 0xA000)),
        (8, (0, 0x8000, 0xA002)),
        (8, (SIZE - 16, 0x8000, 0xA000)),
        (8, (0, SIZE - 20, 0xA000)),
        (8, (0, 0x8000, SIZE - 68)),
        (8, (-USER, 0x8000, 0xA000)),
    ],
)
def test_ring_that_cannot_be(size: int, addresses: tuple[int, int, int]) -> None:
    memory = GuestMemory([MemoryRegion(GUEST, USER, memoryview(bytearray(SIZE)))])
    descriptors, available, used = (USER + address for address in addresses)
    with pytest.raises(VirtqueueError):
        Virtqueue(
            memory,
            size=size,
            descriptors=descriptors,
            available=available,
            used=used,
            next_available=0,
            features=0,
        )


_SMALL = 0x1000
_addresses = st.one_of(
    st.integers(GUEST, GUEST + _SMALL),
    st.sampled_from([GUEST + 0x400, GUEST + 0x440]),
    st.sampled_from([0, GUEST - 1, GUEST + _SMALL - 16, (1 << 64) - 1]),
)
_lengths = st.one_of(st.sampled_from([0, 1, 16, 32, 256, (1 << 32) - 1]), st.integers(0, _SMALL))
_descriptors = st.tuples(_addresses, _lengths, st.integers(0, 7), st.integers(0, 9))


@settings(max_examples=300, deadline=None)
@given(
    table=st.lists(_descriptors, max_size=8),
    tail=st.lists(_descriptors, max_size=16),
    heads=st.lists(st.integers(0, 9), max_size=12),
    available=st.integers(0, 0xFFFF) | st.integers(0, 8),
    features=st.sampled_from([0, F_INDIRECT_DESC, F_EVENT_IDX | F_INDIRECT_DESC]),
)
def test_hostile_memory_ends_in_buffers_or_the_error(
    table: list[tuple[int, int, int, int]],
    tail: list[tuple[int, int, int, int]],
    heads: list[int],
    available: int,
    features: int,
) -> None:
    """Whatever is in memory: chains of views of that memory, or VirtqueueError; and it ends."""
    packed = [struct.pack("<QIHH", *descriptor) for descriptor in table]
    shared = bytearray(_SMALL)
    shared[: 16 * len(packed)] = b"".join(packed)
    for n, descriptor in enumerate(tail):
        struct.pack_into("<QIHH", shared, 0x400 + 16 * n, *descriptor)
    struct.pack_into(f"<{len(heads)}H", shared, 0x204, *heads)
    struct.pack_into("<H", shared, 0x202, available)
    memory = GuestMemory([MemoryRegion(GUEST, USER, memoryview(shared))])
    queue = Virtqueue(
        memory,
        size=8,
        descriptors=USER,
        available=USER + 0x200,
        used=USER + 0x300,
        next_available=0,
        features=features,
    )
    popped = 0
    try:
        while (chain := queue.pop()) is not None:
            popped += 1
            assert popped <= 8
            for view in chain.readable + chain.writable:
                assert view.obj is shared
                assert 0 < len(view) <= _SMALL
            assert len(chain.readable) + len(chain.writable) <= 8 + MAX_QUEUE_SIZE
    except VirtqueueError:
        pass
