"""Memory that arrives from a peer, by real nodes, while programs read it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pcloop.formats.manifest import SignedManifest, open_manifest
from p2pcloop.formats.profile import Touch
from p2pcloop.store.have import is_whole
from p2pcloopd.block.memory_file import open_memory_file
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import TEMPORARY, BlockServerSpec, MemoryPart
from tests.support.memory_reader import PAGE, reading
from tests.support.mounts import needs_fuse
from tests.support.programs import Node, Nodes
from tests.support.waiting import wait_until
from tests.support.workers import kill_worker

pytestmark = [pytest.mark.e2e, needs_fuse]

DISK, SIZE = 1 << 20, 4 << 20
CONTENT = random.Random(16).randbytes(DISK + SIZE)
FIRST = DISK // PAGE
PROFILE = tuple(Touch(FIRST + page, 8, page) for page in (900, 16, 512, 100))


def sha(first: int, last: int) -> str:
    return hashlib.sha256(CONTENT[DISK + first : DISK + last]).hexdigest()


@pytest.fixture
def seeder(nodes: Nodes) -> Node:
    return nodes.make()


@pytest.fixture
def spec(nodes: Nodes, seeder: Node, tmp_path: Path) -> Iterator[BlockServerSpec]:
    """An image that a second node knows, and has nothing of."""
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    reader = nodes.make()
    link = seeder.seed(image, "image", "--raw")["link"]
    reader.run("daemon", "start")
    reader.call("resolve", ref=link)
    [manifest] = reader.home.manifests.iterdir()
    with open_memory_file(tmp_path, SIZE, everyone=False) as file:
        yield BlockServerSpec(
            reader.home,
            open_manifest(manifest.read_bytes()),
            overlay=TEMPORARY,
            nbd=f"unix:{tmp_path}/nbd",
            for_guest=True,
            record_touches=True,
            memory=MemoryPart(DISK, SIZE, file),
            waiting=tmp_path / "waiting",
        )


def test_pages_arrive_from_a_peer_and_workers_are_killed_meanwhile(spec: BlockServerSpec) -> None:
    assert spec.memory is not None
    with BlockServerProcess(spec, successors=True) as block, reading(spec.memory.file) as reader:
        for start in range(0, SIZE, SIZE // 4):
            reader.begin("read", start, start + SIZE // 4)
            kill_worker(block)
            assert reader.said() == sha(start, start + SIZE // 4)


def test_the_profile_is_here_before_the_guest_goes_on(spec: BlockServerSpec) -> None:
    spec = replace(spec, profile=PROFILE)
    assert spec.memory is not None

    async def held_until_enough() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block.finish)
            await block.enough()
            nursery.cancel_scope.cancel()

    with BlockServerProcess(spec, successors=True) as block, reading(spec.memory.file) as reader:
        trio.run(held_until_enough)
        for touch in PROFILE:
            first, last = ((each - FIRST) * PAGE for each in (touch.start, touch.end))

            def is_cached(first: int = first, last: int = last) -> bool:
                return reader.ask("cached", first, last) == str((last - first) // PAGE)

            wait_until(is_cached, "that the pages were pushed")
            assert reader.ask("read", first, last) == sha(first, last)
        assert reader.ask("read", 0, SIZE) == sha(0, SIZE)
        block.stop()
        report = trio.run(block.finish)
    assert report["prefetched"]["chunks"] > 0
    pushed = {block for touch in PROFILE for block in range(touch.start, touch.end)}
    found = {at for start, count, _ in report["touches"] for at in range(start, start + count)}
    assert found == set(range(FIRST, FIRST + SIZE // PAGE)) - pushed


def test_readers_wait_for_a_peer_and_others_are_told(spec: BlockServerSpec, seeder: Node) -> None:
    assert spec.memory is not None
    with BlockServerProcess(spec, successors=True) as block, reading(spec.memory.file) as reader:
        assert reader.ask("read", 0, PAGE) == sha(0, PAGE)
        seeder.run("daemon", "stop")
        reader.begin("read", 0, SIZE)
        assert spec.waiting is not None
        wait_until(spec.waiting.exists, "that it is told what the guest waits for")
        kill_worker(block)
        seeder.run("daemon", "start")
        assert reader.said() == sha(0, SIZE)


def test_the_rest_is_filled_in(spec: BlockServerSpec, seeder: Node) -> None:
    assert spec.memory is not None
    signed = spec.image
    assert isinstance(signed, SignedManifest)
    [layer] = signed.manifest.layers
    have = spec.home.torrents / layer.torrent.hex() / "have"

    def is_here() -> bool:
        return have.exists() and is_whole(have)

    with (
        BlockServerProcess(replace(spec, fill=0), successors=True),
        reading(spec.memory.file) as reader,
    ):
        assert reader.ask("read", 0, PAGE) == sha(0, PAGE)
        wait_until(is_here, "that all of the image is here")
        seeder.run("daemon", "stop")
        assert reader.ask("read", 0, SIZE) == sha(0, SIZE)
