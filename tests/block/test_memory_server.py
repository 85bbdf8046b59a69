"""The memory file of a resumed guest: real FUSE, and real programs that map it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.errors import NeedsPackageError
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.stored import StoredImage
from p2pcloop.making.local import inspect_file
from p2pcloop.protocol import fuse
from p2pcloop.store.home import Home
from p2pcloopd import fusermount
from p2pcloopd.block import memory_file, memory_requests, memory_server
from p2pcloopd.block.memory_file import MemoryFile, answer_for, open_memory_file
from p2pcloopd.block.memory_server import MemoryServer, is_killed, refuse_all
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec, MemoryPart
from tests.support.images import StoredLayer, make_image
from tests.support.memory_reader import PAGE, MemoryReader, reading
from tests.support.mounts import needs_fuse
from tests.support.users import AS_ANOTHER_USER, needs_another_user
from tests.support.waiting import wait_until
from tests.support.workers import worker_of, workers

pytestmark = needs_fuse

DISK = 1 << 20
SIZE = 1 << 20
IMAGE = make_image(DISK + SIZE, seed=3)
MEMORY = IMAGE[DISK:]


def sha(first: int, last: int) -> str:
    return hashlib.sha256(MEMORY[first:last]).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MemoryFile]:
    with open_memory_file(tmp_path, SIZE, everyone=os.geteuid() == 0) as opened:
        yield opened


@pytest.fixture
def spec(tmp_path: Path, file: MemoryFile) -> BlockServerSpec:
    home = Home.at(tmp_path / "home")
    home.create()
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    return BlockServerSpec(
        home,
        inspect_file(image),
        overlay=tmp_path / "mine.delta",
        nbd=f"unix:{tmp_path}/s",
        memory=MemoryPart(DISK, SIZE, file),
    )


@pytest.fixture
def served(spec: BlockServerSpec, file: MemoryFile) -> Iterator[MemoryFile]:
    with BlockServerProcess(spec) as block:
        trio.run(block.wait_ready)
        yield file


class Late:
    """A backend of an image in a store that has nothing; what is asked for comes when it may.

    Attributes:
        let: what is waited for comes, and all that is asked for later.
        asked: every range that was asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.layer = StoredLayer(folder / "torrents", IMAGE)
        manifest = Manifest(bytes(32), "a", 1, 0, len(IMAGE), (self.layer.ref,))
        self.stored = StoredImage(manifest, folder / "torrents")
        self.let = trio.Event()
        self._parked = trio.lowlevel.ParkingLot()
        self.asked: list[ByteRange] = []
        while True:
            try:
                self.device = ImageDevice(self.stored.open(), length=DISK)
            except Missing as missing:
                self._take(missing)
            else:
                return

    async def supply(self, missing: Missing) -> None:
        self.asked += missing.ranges
        self._parked.unpark_all()
        await self.let.wait()
        self._take(missing)

    async def was_asked(self, count: int) -> None:
        """Return when so many ranges were asked for."""
        while len(self.asked) < count:
            await self._parked.park()

    async def flush(self) -> None:
        raise AssertionError("it is only read")

    def _take(self, missing: Missing) -> None:
        for wanted in missing.ranges:
            self.stored.accept(wanted, self.layer.answer(wanted))


@asynccontextmanager
async def serving(backend: Late, file: MemoryFile) -> AsyncIterator[None]:
    """A server in this process."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(MemoryServer(backend, MemoryPart(DISK, SIZE, file), file).run)
        yield
        nursery.cancel_scope.cancel()


def test_a_program_reads_what_the_image_has_and_keeps_its_own_writes(served: MemoryFile) -> None:
    with reading(served) as reader, reading(served) as other:
        assert reader.ask("read", 0, SIZE) == sha(0, SIZE)
        assert reader.ask("write", 5 * PAGE, 6 * PAGE) == "written"
        assert reader.ask("read", 5 * PAGE, 6 * PAGE) != sha(5 * PAGE, 6 * PAGE)
        assert other.ask("read", 0, SIZE) == sha(0, SIZE)


def test_it_is_read_in_a_user_namespace(served: MemoryFile) -> None:
    with reading(served, "unshare", "--user", "--map-root-user") as reader:
        assert reader.ask("read", 0, SIZE) == sha(0, SIZE)


@needs_another_user
def test_another_user_reads_it_if_root_serves(served: MemoryFile) -> None:
    """As a machine that root starts: it inherits the open file, and opens it anew."""
    python = os.path.realpath("/usr/bin/python3")
    code = "import os,sys; print(os.pread(os.open(f'/proc/self/fd/{sys.argv[1]}', 2), 4096, 0)[:8])"
    done = subprocess.run(
        [*AS_ANOTHER_USER, python, "-c", code, str(served.file)],
        pass_fds=[served.file],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(MEMORY[:8])


def mounts_in(folder: Path) -> list[Path]:
    """Other processes mount such files elsewhere, meanwhile."""
    found = fusermount.mounts_of("fuse.p2pcloop-memory")
    return [path for path in found if path.is_relative_to(folder)]


@pytest.mark.usefixtures("served")
def test_no_path_and_no_mount_is_left(tmp_path: Path) -> None:
    assert mounts_in(tmp_path) == []
    assert not (tmp_path / "memory").exists()


def test_a_hostile_reader_changes_nothing_for_others(served: MemoryFile) -> None:
    with reading(served) as hostile:
        said = hostile.ask("try", 3 * PAGE, 4 * PAGE).split(";")
        assert "done" not in (said[1], said[2], said[3], said[4], said[7])
        assert hostile.process.poll() is None
        with reading(served) as reader:
            assert reader.ask("read", 8 * PAGE, SIZE) == sha(8 * PAGE, SIZE)


def test_an_interrupt_does_not_wait_for_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens the file waits for answers, and the opening for the thread."""
    answer = memory_file._answer_until

    def interrupted(*words: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        answer(*words)

    monkeypatch.setattr(memory_file, "_answer_until", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        open_memory_file(tmp_path, SIZE, everyone=False),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_mount_that_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.touch()
    os.close(fusermount.mount(left, everyone=False, name="p2pcloop-memory", options=()))
    with open_memory_file(tmp_path, SIZE, everyone=False):
        assert mounts_in(tmp_path) == []
    assert not left.exists()


def test_two_may_clean_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is faster, once this one has seen what is left."""
    left = tmp_path / "left"
    left.touch()
    monkeypatch.setattr(memory_file, "mounts_of", lambda _kind: [left])
    monkeypatch.setattr(memory_file, "is_dead", lambda _path: True)
    with open_memory_file(tmp_path, SIZE, everyone=False):
        assert mounts_in(tmp_path) == []


def test_what_another_user_left_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fusermount3 refuses, and the file cannot be deleted: a folder stands for that."""
    left = tmp_path / "left"
    left.mkdir()
    monkeypatch.setattr(memory_file, "mounts_of", lambda _kind: [left])
    monkeypatch.setattr(memory_file, "is_dead", lambda _path: True)
    with open_memory_file(tmp_path, SIZE, everyone=False):
        assert left.is_dir()


def test_a_kernel_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcloop.protocol.fuse._MINOR", 4711)
    with (
        pytest.raises(fuse.KernelProtocolError, match="speaks version"),
        open_memory_file(tmp_path, SIZE, everyone=False),
    ):
        raise AssertionError("it was opened")
    assert mounts_in(tmp_path) == []


def test_a_system_without_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusermount, "DEVICE", tmp_path / "fuse")
    with (
        pytest.raises(NeedsPackageError, match="no FUSE"),
        open_memory_file(tmp_path, SIZE, everyone=False),
    ):
        raise AssertionError("it was opened")


FIRST = DISK // PAGE
PROFILE = (
    Touch(3, 5, 0),
    Touch(FIRST + 10, 40, 1),
    Touch(FIRST - 2, 4, 2),
    Touch(FIRST + 255, 9, 3),
)
"""Blocks of the disk, of the memory, of both, and behind the end."""

PUSHED = {*range(10, 50), 0, 1, 255}
"""Pages of the memory that it names."""


def cached(reader: MemoryReader) -> set[int]:
    """The pages that the kernel has."""
    return {
        page
        for page in range(SIZE // PAGE)
        if reader.ask("cached", page * PAGE, (page + 1) * PAGE) == "1"
    }


def touched(report: dict[str, Any]) -> list[int]:
    """The pages of the memory that count as touched, in order."""
    return [
        block - FIRST
        for first, count, _ in report["touches"]
        for block in range(first, first + count)
        if block >= FIRST
    ]


def test_pages_of_the_profile_are_pushed_and_others_are_recorded(
    spec: BlockServerSpec, file: MemoryFile
) -> None:
    spec = replace(spec, profile=PROFILE, record_touches=True)
    with BlockServerProcess(spec, successors=True) as block, reading(file) as reader:
        wait_until(lambda: cached(reader) == PUSHED)
        assert reader.ask("read", 0, SIZE) == sha(0, SIZE)
        block.stop()
        pages = touched(trio.run(block.finish))
    assert pages == sorted(set(range(SIZE // PAGE)) - PUSHED)


def test_without_a_profile_each_first_touch_is_recorded(
    spec: BlockServerSpec, file: MemoryFile
) -> None:
    spec = replace(spec, record_touches=True)
    with BlockServerProcess(spec, successors=True) as block, reading(file) as reader:
        for page in (7, 3, 200, 3):
            reader.ask("read", page * PAGE, (page + 1) * PAGE)
        block.stop()
        assert touched(trio.run(block.finish)) == [7, 3, 200]


def test_a_pusher_that_is_killed_is_not_needed(spec: BlockServerSpec, file: MemoryFile) -> None:
    profile = tuple(Touch(FIRST + page, 1, page) for page in range(SIZE // PAGE))
    with (
        BlockServerProcess(replace(spec, profile=profile), successors=True) as block,
        reading(file) as reader,
    ):
        worker_of(block)
        os.kill(workers(block)[0], signal.SIGKILL)
        assert reader.ask("read", 0, SIZE) == sha(0, SIZE)
        os.posix_fadvise(file.file, 0, 0, os.POSIX_FADV_DONTNEED)
        with reading(file) as other:
            assert other.ask("read", 0, SIZE) == sha(0, SIZE)


@asynccontextmanager
async def reader_of(file: MemoryFile) -> AsyncIterator[MemoryReader]:
    """A reader whose file this process serves: what waits for it does so in threads."""
    context = reading(file)
    reader = await trio.to_thread.run_sync(context.__enter__)
    try:
        yield reader
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(context.__exit__, None, None, None)


async def said(reader: MemoryReader) -> str:
    return await trio.to_thread.run_sync(reader.said, abandon_on_cancel=True)


async def test_pages_that_are_missing_are_waited_for(tmp_path: Path, file: MemoryFile) -> None:
    backend = Late(tmp_path)
    async with (
        serving(backend, file),
        reader_of(file) as one,
        reader_of(file) as two,
    ):
        one.begin("read", 0, SIZE)
        two.begin("read", 65536 * 2, SIZE)
        await backend.was_asked(2)
        backend.let.set()
        assert await said(one) == sha(0, SIZE)
        assert await said(two) == sha(65536 * 2, SIZE)


async def test_what_one_worker_leaves_unanswered_the_next_answers(
    tmp_path: Path, file: MemoryFile
) -> None:
    backend = Late(tmp_path)
    async with trio.open_nursery() as nursery:
        async with serving(backend, file):
            reader = await nursery.start(_read_all, file)
            await backend.was_asked(1)
        backend.let.set()
        async with serving(backend, file):
            assert await said(reader) == sha(0, SIZE)
            nursery.cancel_scope.cancel()


async def _read_all(
    file: MemoryFile, *, task_status: trio.TaskStatus[MemoryReader] = trio.TASK_STATUS_IGNORED
) -> None:
    async with reader_of(file) as reader:
        reader.begin("read", 0, SIZE)
        task_status.started(reader)
        await trio.sleep_forever()


async def test_where_no_worker_is_left_its_readers_can_be_killed(
    tmp_path: Path, file: MemoryFile
) -> None:
    """A request that a worker has read keeps even a killed reader until it is answered."""
    backend = Late(tmp_path)
    async with trio.open_nursery() as nursery:
        async with serving(backend, file):
            reader = await nursery.start(_read_all, file)
            await backend.was_asked(1)
        refuse_all(file)
        reader.process.kill()
        ended = await trio.to_thread.run_sync(reader.process.wait)
        assert ended in (-signal.SIGBUS, -signal.SIGKILL)
        nursery.cancel_scope.cancel()


async def test_more_readers_than_there_are_slots(
    tmp_path: Path, file: MemoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_requests, "SLOTS", 2)
    backend = Late(tmp_path)
    async with serving(backend, file), AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reader_of(file)) for _ in range(4)]
        for number, reader in enumerate(readers):
            reader.begin("read", number * (SIZE // 4), (number + 1) * (SIZE // 4))
        await backend.was_asked(1)
        backend.let.set()
        for number, reader in enumerate(readers):
            assert await said(reader) == sha(number * (SIZE // 4), (number + 1) * (SIZE // 4))


async def test_wrong_bytes_are_healed(tmp_path: Path, file: MemoryFile) -> None:
    backend = Late(tmp_path)
    backend.layer.store(range(backend.layer.pieces))
    length = backend.layer.ref.index_length
    damaged = bytearray(backend.layer.content)
    for at in range(length, len(damaged), 5000):
        damaged[at] ^= 1
    backend.layer.write(damaged[:length], damaged[length:])
    backend.let.set()
    async with serving(backend, file), reader_of(file) as reader:
        reader.begin("read", 0, SIZE)
        assert await said(reader) == sha(0, SIZE)
    assert all(wanted.heal for wanted in backend.asked)
    assert backend.asked


async def test_what_cannot_be_right_ends_the_machine_and_never_reaches_it(
    tmp_path: Path, file: MemoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Late(tmp_path)
    broken = bytearray(backend.layer.content)
    for at in range(backend.layer.ref.index_length, len(broken), 1000):
        broken[at] ^= 1
    backend.layer.content = bytes(broken)
    backend.let.set()
    async with serving(backend, file), reader_of(file) as reader:
        reader.begin("read", 0, SIZE)
        assert await said(reader) == ""
        assert await trio.to_thread.run_sync(reader.process.wait) == -signal.SIGBUS
    assert re.search(r"its memory at \d+ cannot be read", caplog.text)


async def test_a_reader_that_is_killed_is_gone_although_its_page_never_comes(
    tmp_path: Path, file: MemoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_server, "_LOOK_SECONDS", 0.01)
    backend = Late(tmp_path)
    async with serving(backend, file), reader_of(file) as reader, reader_of(file) as other:
        reader.begin("read", 0, PAGE)
        other.begin("read", SIZE - PAGE, SIZE)
        await backend.was_asked(2)
        os.kill(reader.process.pid, signal.SIGKILL)
        assert await trio.to_thread.run_sync(reader.process.wait) == -signal.SIGKILL
        backend.let.set()
        assert await said(other) == sha(SIZE - PAGE, SIZE)


def test_who_was_killed() -> None:
    assert not is_killed(0)
    assert not is_killed(os.getpid())
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert is_killed(process.pid)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (fuse.Lookup(9, 1, b"a"), errno.ENOSYS),
        (fuse.Seek(9, 1, 0, os.SEEK_DATA), errno.ENOSYS),
        (fuse.ReadLink(9, 1), errno.ENOSYS),
        (fuse.Refused(9, errno.EROFS), errno.EROFS),
    ],
)
def test_what_is_not_served_is_refused(request_: fuse.Request, error: int) -> None:
    assert answer_for(request_, SIZE) == fuse.failed(9, error)


def test_what_gets_no_answer() -> None:
    for request in (fuse.Forget([(1, 1)]), fuse.Interrupt(3)):
        assert answer_for(request, SIZE) is None
