"""A block server that is killed has a successor, and what it had acknowledged is there."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import DaemonError, GuestError
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.formats.overlay_remains import Remains
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block import successors
from p2pcloopd.block.memory_file import open_memory_file
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import TEMPORARY, BlockServerSpec, FilesOverlay, MemoryPart
from p2pcloopd.unix_listener import bind_unix_listener
from tests.support.images import make_image
from tests.support.memory_reader import reading
from tests.support.mounts import needs_fuse
from tests.support.nbd_client import FLUSH, READ, WRITE, WRITE_ZEROES, NbdClient
from tests.support.waiting import BOUND
from tests.support.workers import kill_worker, worker_of

SIZE = 1 << 20
IMAGE = make_image(SIZE, seed=5)


@pytest.fixture
def spec(tmp_path: Path) -> BlockServerSpec:
    home = Home.at(tmp_path / "home")
    home.create()
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    return BlockServerSpec(home, inspect_file(image), overlay=tmp_path / "mine.delta")


@contextmanager
def forked(spec: BlockServerSpec, socket: Path) -> Iterator[BlockServerProcess]:
    with ExitStack() as stack:
        listener = stack.enter_context(bind_unix_listener(socket))
        block = stack.enter_context(
            BlockServerProcess(replace(spec, nbd=listener), successors=True)
        )
        listener.close()
        yield block


@asynccontextmanager
async def client(socket: Path) -> AsyncIterator[NbdClient]:
    async with await trio.open_unix_socket(str(socket)) as stream:
        nbd = NbdClient(stream)
        await nbd.haggle()
        yield nbd


@pytest.mark.parametrize("overlay", ["named", TEMPORARY])
def test_acknowledged_writes_outlive_a_worker(
    spec: BlockServerSpec, overlay: str, tmp_path: Path
) -> None:
    socket = tmp_path / "s"
    if overlay == TEMPORARY:
        spec = replace(spec, overlay=TEMPORARY)

    async def main() -> None:
        await block.wait_ready()
        for round_ in range(3):
            async with client(socket) as nbd:
                if round_ == 1:
                    await nbd.send(FLUSH)
                    assert (await nbd.reply())[1] == 0
                offset = round_ * 3 * BLOCK_SIZE
                await nbd.send(WRITE, offset, payload=bytes([65 + round_]) * (2 * BLOCK_SIZE))
                await nbd.send(WRITE_ZEROES, offset + BLOCK_SIZE, BLOCK_SIZE)
                for _ in range(2):
                    assert (await nbd.reply())[1] == 0
                kill_worker(block)
        expected = bytearray(IMAGE)
        for round_ in range(3):
            at = round_ * 3 * BLOCK_SIZE
            expected[at : at + 2 * BLOCK_SIZE] = bytes([65 + round_]) * BLOCK_SIZE + bytes(
                BLOCK_SIZE
            )
        async with client(socket) as nbd:
            await nbd.send(READ, 0, SIZE)
            assert (await nbd.reply())[2] == bytes(expected)
        block.stop()
        assert (await block.finish())["restarts"] == 3

    with forked(spec, socket) as block:
        trio.run(main)
    if isinstance(spec.overlay, Path):
        with Overlay.open(spec.overlay, image_id=None) as kept:
            states = [kept.state(block) for block in range(9)]
        assert states == [State.DATA, State.ZERO, State.ABSENT] * 3


def test_a_files_overlay_outlives_a_worker(spec: BlockServerSpec, tmp_path: Path) -> None:
    """Its file system is made once."""
    size = 64 << 20

    async def main() -> None:
        await block.wait_ready()
        async with client(socket) as nbd:
            await nbd.send(WRITE, 4 << 20, payload=b"w" * BLOCK_SIZE)
            assert (await nbd.reply())[1] == 0
            await nbd.send(READ, 0, 1 << 20)
            before = (await nbd.reply())[2]
        kill_worker(block)
        async with client(socket) as nbd:
            await nbd.send(READ, 0, 1 << 20)
            assert (await nbd.reply())[2] == before
            await nbd.send(READ, 4 << 20, BLOCK_SIZE)
            assert (await nbd.reply())[2] == b"w" * BLOCK_SIZE

    socket = tmp_path / "files"
    with bind_unix_listener(socket) as listener:
        files = FilesOverlay(size, nbd=listener)
        spec = replace(spec, overlay=TEMPORARY, files=files)
        with forked(spec, tmp_path / "s") as block:
            trio.run(main)


def test_no_touches_are_told_of_a_worker_that_came_later(
    spec: BlockServerSpec, tmp_path: Path
) -> None:
    async def main() -> None:
        await block.wait_ready()
        kill_worker(block)
        async with client(tmp_path / "s") as nbd:
            await nbd.send(READ, 0, BLOCK_SIZE)
            await nbd.reply()
        block.stop()
        assert "touches" not in await block.finish()

    with forked(replace(spec, record_touches=True), tmp_path / "s") as block:
        trio.run(main)


def test_what_kills_every_worker_at_once_ends_it(
    spec: BlockServerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successors, "QUICK_SECONDS", BOUND)

    async def main() -> None:
        await block.wait_ready()
        for _ in range(successors.MAX_QUICK):
            os.kill(worker_of(block), signal.SIGKILL)
            await block.wait_ready()

    with forked(spec, tmp_path / "s") as block, pytest.raises(DaemonError, match="server died"):
        trio.run(main)


def test_a_copy_of_the_overlay_is_made_or_refused_by_a_worker_that_is_killed(
    spec: BlockServerSpec, tmp_path: Path
) -> None:
    async def copied(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            path = await block.copy_overlay(folder)
        except GuestError as err:
            return str(err)
        with Overlay.open(path, image_id=None) as copy:
            return copy.state(0).name

    async def main() -> None:
        await block.wait_ready()
        async with client(tmp_path / "s") as nbd:
            await nbd.send(WRITE, 0, payload=b"w" * BLOCK_SIZE)
            await nbd.reply()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block.finish)
            for number in range(3):
                nursery.start_soon(_kill_soon)
                told = await copied(number)
                assert told == "DATA" or "killed meanwhile" in told
            # Of the last one that was killed it may be heard only now.
            number = 3
            while (told := await copied(number)) != "DATA":
                assert "killed meanwhile" in told
                number += 1
            block.stop()

    async def _kill_soon() -> None:
        kill_worker(block)

    with forked(spec, tmp_path / "s") as block:
        trio.run(main)


def test_an_orphan_ends_and_makes_all_durable(spec: BlockServerSpec, tmp_path: Path) -> None:
    """The one that forks is killed: the worker goes on, and is waited for at the end."""

    async def main() -> None:
        await block.wait_ready()
        worker_of(block)
        os.kill(block._pid, signal.SIGKILL)
        async with client(tmp_path / "s") as nbd:
            await nbd.send(WRITE, 0, payload=b"w" * BLOCK_SIZE)
            assert (await nbd.reply())[1] == 0

    with forked(spec, tmp_path / "s") as block:
        trio.run(main)
    assert isinstance(spec.overlay, Path)
    with Overlay.open(spec.overlay, image_id=None) as kept:
        assert kept.state(0) is State.DATA


@needs_fuse
def test_readers_of_memory_wait_for_the_next_worker(spec: BlockServerSpec, tmp_path: Path) -> None:
    size = SIZE - BLOCK_SIZE
    expected = hashlib.sha256(IMAGE[BLOCK_SIZE:]).hexdigest()
    with open_memory_file(tmp_path, size, everyone=False) as file:
        memory = MemoryPart(BLOCK_SIZE, size, file)
        with forked(replace(spec, memory=memory), tmp_path / "s") as block:
            trio.run(block.wait_ready)
            for _ in range(3):
                # Its pages go from the cache, and are read anew while the worker is killed.
                os.posix_fadvise(file.file, 0, 0, os.POSIX_FADV_DONTNEED)
                with reading(file) as one, reading(file) as two:
                    one.begin("read", 0, size)
                    two.begin("read", 0, size)
                    kill_worker(block)
                    assert one.said() == two.said() == expected


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "flush", "kill"]), st.integers(0, 40), st.integers(1, 9)
    ),
    max_size=30,
)


@given(CHANGES, st.booleans())
@settings(deadline=None)
def test_the_states_of_a_killed_process_are_those_that_were_acknowledged(
    changes: list[tuple[str, int, int]], temporary: bool
) -> None:
    """Against a model; to be killed is to lose all memory, and to close the file."""
    blocks = 50
    model: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not temporary:
            Overlay.create(folder / "o", image_id=bytes(32), image_size=blocks * BLOCK_SIZE).close()
        remains = Remains.create(folder)
        open_ = _opener(folder, remains, blocks, temporary=temporary)
        overlay = open_()
        for number, (what, first, count) in enumerate(changes):
            content = bytes([number + 1]) * BLOCK_SIZE
            if what == "write":
                overlay.write(first * BLOCK_SIZE, [memoryview(content * count)])
                model |= dict.fromkeys(range(first, first + count), content)
            elif what == "zero":
                overlay.zero(first, count)
                model |= dict.fromkeys(range(first, first + count), bytes(BLOCK_SIZE))
            elif what == "flush":
                overlay.prepare_flush()()
            else:
                _kill(overlay, temporary=temporary)
                overlay = open_()
        _kill(overlay, temporary=temporary)
        overlay = open_()
        for each in range(blocks):
            assert _content(overlay, each) == model.get(each), each
        overlay.close()


def _opener(
    folder: Path, remains: Remains, blocks: int, *, temporary: bool
) -> Callable[[], Overlay]:
    def open_() -> Overlay:
        if temporary:
            return Overlay.create_temporary(
                folder, image_id=bytes(32), image_size=blocks * BLOCK_SIZE, remains=remains
            )
        overlay = Overlay.open(folder / "o", image_id=None)
        overlay.leave(remains)
        return overlay

    return open_


def _kill(overlay: Overlay, *, temporary: bool) -> None:
    if not temporary:  # the content of a temporary one is the ancestor's to close
        overlay._file.close()


def _content(overlay: Overlay, block: int) -> bytes | None:
    match overlay.state(block):
        case State.ABSENT:
            return None
        case State.ZERO:
            return bytes(BLOCK_SIZE)
    view = bytearray(BLOCK_SIZE)
    overlay.read_into(block * BLOCK_SIZE, [memoryview(view)])
    return bytes(view)
