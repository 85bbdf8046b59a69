"""The chunks of a boot are kept for the next one, and not held in memory by each block server."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloop.formats.block_map import Run
from p2pcloop.image.merged import MergedImage
from p2pcloop.store.home import Home
from p2pcloop.store.kept import KeptChunks, kept_path
from p2pcloopd.block.keeping import PAUSE_SECONDS, SHARE_SECONDS, Keeper
from tests.support.images import make_layer

SIZE = 1 << 16
CHUNKS = [bytes([number + 1]) * SIZE for number in range(40)]


class Boot:
    """One boot of the same image: what it reads is found in `decoded`, unless it was kept."""

    def __init__(self, home: Home) -> None:
        blocks = SIZE // 4096
        runs = [Run(0, len(CHUNKS) * blocks, 0, 0, blocks)]
        layer = make_layer(runs, CHUNKS, len(CHUNKS) * blocks)
        self.kept = KeptChunks(home, bytes(32))
        layer._kept = self.kept
        self.image = MergedImage([layer])
        self.image.image_id = bytes(32)
        self.keeper = Keeper(home, self.image, self.kept)
        self.here = {n for n in range(len(CHUNKS)) if layer.chunk(n).id in self.kept}

    def read(self, *numbers: int) -> None:
        for number in numbers:
            assert self.image.read_chunk(0, number) == CHUNKS[number]

    def close(self) -> None:
        self.image.close()
        self.kept.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


async def test_a_boot_is_kept_after_a_pause(
    home: Home,
    autojump_clock: trio.testing.MockClock,
) -> None:
    boot = Boot(home)
    assert boot.here == set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot.keeper.run)
        await trio.sleep(4 * PAUSE_SECONDS)  # nothing was read yet
        for number in range(4):
            boot.read(number)
            await trio.sleep(0.75 * SHARE_SECONDS)
            assert not kept_path(home, bytes(32)).exists()
    assert kept_path(home, bytes(32)).exists()
    boot.read(20)
    await boot.keeper.keep()  # the guest's end
    boot.close()
    boot = Boot(home)
    assert boot.here == {0, 1, 2, 3}
    boot.close()


def _inode(home: Home) -> int:
    return kept_path(home, bytes(32)).stat().st_ino


async def test_block_servers_of_one_image_share_what_they_have_decoded(home: Home) -> None:
    first, second = Boot(home), Boot(home)
    first.read(*range(20))
    second.read(*range(10, 20), 39)
    assert len(first.image.contents()) == 20
    await first.keeper.share()
    assert first.image.contents() == []
    inode = _inode(home)
    await second.keeper.share()
    # What the first has kept is kept. The one chunk that it has not read is not worth a file.
    assert _inode(home) == inode
    assert len(second.image.contents()) == 1
    first.read(*range(20))
    second.read(*range(20), 39)
    assert len(first.image.contents()) == 20
    await first.keeper.share()
    kept_path(home, bytes(32)).write_bytes(b"")  # shortens what both have open
    first.read(*range(40))
    await second.keeper.share()
    second.read(*range(40))
    first.close()
    second.close()


async def test_a_boot_that_waits_now_and_then_writes_few_files(home: Home) -> None:
    boot = Boot(home)
    files = []
    for number in range(40):
        boot.read(number)
        await boot.keeper.share()
        files.append(_inode(home))
        assert len(boot.image.contents()) <= max(1, number // 3)
    assert sum(one != other for one, other in pairwise(files)) < 12
    await boot.keeper.keep()
    boot.close()
    boot = Boot(home)
    assert boot.here == set(range(40))
    boot.close()


async def test_a_boot_is_shared_before_it_is_over(
    home: Home,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot = Boot(home)
    boot.read(*range(20))
    start, shared = trio.current_time(), []

    async def share() -> None:
        shared.append(trio.current_time() - start)

    monkeypatch.setattr(boot.keeper, "share", share)
    await boot.keeper.run()
    assert shared == [pytest.approx(SHARE_SECONDS, abs=1.1)]
    assert trio.current_time() - start >= PAUSE_SECONDS
    assert boot.image.contents() == []
    boot.close()


async def test_without_room_on_the_disk_the_chunks_stay_in_memory(
    home: Home,
    autojump_clock: trio.testing.MockClock,
) -> None:
    home.kept.write_bytes(b"no directory")
    boot = Boot(home)
    boot.read(*range(20))
    await boot.keeper.run()
    assert len(boot.image.contents()) == 20
    boot.close()


async def test_a_guest_that_ends_early_is_kept_at_its_end(home: Home) -> None:
    boot = Boot(home)
    boot.read(*range(20))
    await boot.keeper.keep()
    boot.close()
    before = _inode(home)
    boot = Boot(home)
    assert boot.here == set(range(20))
    boot.read(*range(21))
    await boot.keeper.keep()  # one chunk of 21 is new: not worth it
    boot.close()
    assert _inode(home) == before
    boot = Boot(home)
    boot.read(*range(23))
    await boot.keeper.keep()
    boot.close()
    boot = Boot(home)
    assert boot.here == set(range(23))
    boot.close()


async def test_a_guest_that_reads_nothing_leaves_nothing(home: Home) -> None:
    boot = Boot(home)
    await boot.keeper.keep()
    boot.close()
    assert not home.kept.exists()
