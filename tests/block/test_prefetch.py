"""What is fetched ahead of a guest, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloop.formats.block_map import Run
from p2pcloop.formats.manifest import LayerRef, Manifest, open_manifest, sign_manifest
from p2pcloop.formats.profile import LATER, Touch, divide_touches
from p2pcloop.image.ahead import ChunkKey
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.protocol import fuse
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block import memory_push, prefetch
from p2pcloopd.block.arrivals import Arrivals
from p2pcloopd.block.memory_file import MemoryFile
from p2pcloopd.block.memory_push import MemoryPush, push_sockets
from p2pcloopd.block.prefetch import Prefetch
from p2pcloopd.block.server import expected_touches, push_pages, read_ahead
from p2pcloopd.block.source import StoredBackend
from p2pcloopd.block.spec import BlockServerSpec, MemoryPart
from p2pcloopd.block.supplier import Supplier
from tests.support.images import make_layer
from tests.support.waiting import BOUND

PROFILE = (Touch(4, 4, 0), Touch(0, 1, 7), Touch(12, 2, LATER), Touch(8, 4, LATER + 3))
FIRST, LATE = [1, 0], [3, 2]
"""Its chunks, of four blocks each."""


def wanted(number: int) -> ByteRange:
    return ByteRange(bytes(20), 100 * number, 100)


class Node:
    """A p2pcloopd whose streams come at once."""

    def __init__(self) -> None:
        self.streamed: list[list[int]] = []

    async def call(
        self, op: str, on_event: Callable[[str, dict[str, Any]], None] | None = None, **args: Any
    ) -> dict[str, Any]:
        assert on_event is not None
        assert op == "stream"
        self.streamed.append([offset // 100 for _, offset, _ in args["ranges"]])
        for number, (_, _, length) in enumerate(args["ranges"]):
            on_event("data", {"number": number, "data": bytes(length)})
        return {}


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def device() -> ImageDevice:
    layer = make_layer([Run(0, 16, 0, 0, 4)], [bytes([n + 1]) * 16384 for n in range(4)], 16)
    return ImageDevice(MergedImage([layer]))


@pytest.fixture
def ahead(device: ImageDevice, node: Node, monkeypatch: pytest.MonkeyPatch) -> Prefetch:
    def missing(_image: object, chunks: Iterable[ChunkKey]) -> dict[ByteRange, ChunkKey]:
        return {wanted(number): (layer, number) for layer, number in chunks}

    monkeypatch.setattr(prefetch, "missing_chunks", missing)
    supplier = Supplier(node, lambda _range, _data: None)
    return Prefetch(device, node, supplier)


async def test_what_comes_after_the_answer_is_asked_for_after_it(
    ahead: Prefetch, node: Node, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ahead.run, PROFILE)
        await ahead.arrivals.enough()
        assert autojump_clock.current_time() == 0
        await wait_all_tasks_blocked()
        assert node.streamed == [FIRST]
        ended, rests = [ahead.arrivals.ended], [ahead._device.image.rests]
        ahead.answered.set()
    assert node.streamed == [FIRST, LATE]
    assert [*ended, ahead.arrivals.ended] == [False, True]
    assert [*rests, ahead._device.image.rests] == [True, False]


async def test_a_guest_that_does_not_answer_gets_what_comes_later(
    ahead: Prefetch, node: Node, autojump_clock: MockClock
) -> None:
    await ahead.run(PROFILE)
    assert node.streamed == [FIRST, LATE]
    assert autojump_clock.current_time() == prefetch.ANSWER_SECONDS


class Pusher:
    """Notes what it is to push."""

    def __init__(self) -> None:
        self.pushed: list[Touch] = []

    async def run(self, touches: Sequence[Touch], _: Arrivals, *, later: bool = False) -> None:
        assert later == bool(self.pushed)
        self.pushed += touches


async def test_what_comes_after_the_answer_is_decoded_after_it(
    ahead: Prefetch, device: ImageDevice, node: Node, autojump_clock: MockClock
) -> None:
    async def report() -> None:
        raise AssertionError

    image = StoredBackend(device, Supplier(node, lambda *_: None), ahead, report, whole=True)
    pusher = Pusher()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push_pages, pusher.run, PROFILE, image, ahead.arrivals)
        await wait_all_tasks_blocked()
        assert pusher.pushed == [*PROFILE[:2]]
        ahead.answered.set()
    assert pusher.pushed == [*PROFILE]
    assert autojump_clock.current_time() == 0


def test_who_does_not_wait_for_an_answer_waits_for_all(device: ImageDevice, tmp_path: Path) -> None:
    file = MemoryFile(16 * BLOCK_SIZE, -1, -1, -1)
    memory = MemoryPart(0, 16 * BLOCK_SIZE, file, whole_profile=True)
    spec = BlockServerSpec(Home(tmp_path), cast("Any", None), profile=PROFILE, memory=memory)
    assert divide_touches(expected_touches(spec)) == (
        [*PROFILE[:2], Touch(12, 2, 0), Touch(8, 4, 3)],
        [],
    )
    spec = replace(spec, memory=replace(memory, whole_profile=False))
    assert divide_touches(expected_touches(spec)) == ([*PROFILE[:2]], [*PROFILE[2:]])


async def test_source_layers_are_filled_in_too(device: ImageDevice, tmp_path: Path) -> None:
    filled = []

    class Filled:
        async def call(self, op: str, on_event: Any = None, **args: Any) -> dict[str, Any]:
            assert on_event is None
            filled.append((op, args["torrent"]))
            return {}

    own, source = (
        LayerRef(each * 32, each * 20, 4096, 512, 1 << 20, 1 << 16) for each in (b"l", b"s")
    )
    key = Ed25519PrivateKey.generate()
    manifest = Manifest(
        key.public_key().public_bytes_raw(), "image", 2, 0, 1 << 20, (own,), sources=(source,)
    )
    spec = BlockServerSpec(Home(tmp_path), open_manifest(sign_manifest(manifest, key)), fill=0)
    node = Filled()
    supplier = Supplier(node, lambda *_: None)
    ahead = Prefetch(device, node, supplier)
    await read_ahead(spec, StoredBackend(device, supplier, ahead, cast("Any", None), whole=True))
    assert filled == [("fill", own.torrent), ("fill", source.torrent)]


async def test_the_profile_of_a_boot_is_one_stream(ahead: Prefetch, node: Node) -> None:
    await ahead.run(PROFILE[:2])
    assert node.streamed == [FIRST]


class Lacking(ImageDevice):
    """A device without its block 4, which came and was dropped again."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset == 4 * BLOCK_SIZE:
            raise Missing([wanted(1)])
        super().read_into(offset, buffers)


async def test_a_page_that_was_dropped_does_not_hold_up_those_behind_it(
    device: ImageDevice, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(memory_push, "ImageDevice", Lacking)
    ours, theirs = push_sockets()
    part = MemoryPart(0, 16 * BLOCK_SIZE, MemoryFile(16 * BLOCK_SIZE, -1, -1, -1))
    with ours, theirs:
        sender = trio.socket.from_stdlib_socket(ours)
        push = MemoryPush(device.image, part, sender, bytearray(16))
        arrivals = Arrivals()
        arrivals.end_first()
        with trio.fail_after(BOUND):
            await push.run(PROFILE[:2], arrivals)
        assert len(theirs.recv(1 << 20)) == fuse.STORE_HEADER_SIZE + BLOCK_SIZE
        arrivals.end()
        await push.run(PROFILE[:1], arrivals, later=True)
    assert autojump_clock.current_time() == 0
