"""The overlay when disks fail or fill up, threads flush and processes die."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from p2pcloop.errors import StorageError
from p2pcloop.formats import overlay as overlay_module
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.formats.overlay_file import OverlayFile
from p2pcloop.units import BLOCK_SIZE
from tests.support.users import NOBODY_ELSE

IMAGE = bytes(range(32))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_sudo_makes_belongs_to_its_caller_in_the_callers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belonged to root alone, and the user could not boot it."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, user in ((ours, 0), (theirs, NOBODY_ELSE)):
        folder.mkdir()
        os.chown(folder, user, user)

    def owner(folder: Path, name: str) -> tuple[int, int]:
        Overlay.create(folder / name, image_id=IMAGE, image_size=64 * BLOCK_SIZE).close()
        status = (folder / name).stat()
        return status.st_uid, status.st_gid

    assert owner(theirs, "by root") == (0, 0)
    monkeypatch.setenv("SUDO_UID", str(NOBODY_ELSE))
    monkeypatch.setenv("SUDO_GID", str(NOBODY_ELSE))
    assert owner(theirs, "by sudo") == (NOBODY_ELSE, NOBODY_ELSE)
    assert owner(ours, "by sudo") == (0, 0)


def block(fill: int) -> memoryview:
    return memoryview(bytes([fill]) * BLOCK_SIZE)


def read(overlay: Overlay, first: int) -> bytes:
    buffer = bytearray(BLOCK_SIZE)
    overlay.read_into(first * BLOCK_SIZE, [memoryview(buffer)])
    return bytes(buffer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.delta"
    Overlay.create(path, image_id=IMAGE, image_size=64 * BLOCK_SIZE).close()
    return path


class FaultyFile(OverlayFile):
    """A file whose next operations fail as told."""

    fail_sync = 0
    fail_write = 0

    def sync(self) -> None:
        if FaultyFile.fail_sync:
            FaultyFile.fail_sync -= 1
            raise StorageError("the disk is gone", errno=errno.EIO)
        super().sync()

    def write(self, offset: int, views: Sequence[memoryview | bytes]) -> None:
        if FaultyFile.fail_write:
            FaultyFile.fail_write -= 1
            raise StorageError("the disk is full", errno=errno.ENOSPC)
        super().write(offset, views)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[FaultyFile]:
    monkeypatch.setattr(overlay_module, "OverlayFile", FaultyFile)
    FaultyFile.fail_sync = FaultyFile.fail_write = 0
    return FaultyFile


def test_flush_that_found_no_space_is_made_up_by_the_next(
    path: Path, faulty: type[FaultyFile]
) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        overlay.write(0, [block(1)])
        flush = overlay.prepare_flush()
        faulty.fail_write = 1
        with pytest.raises(StorageError) as caught:
            flush()
        assert caught.value.errno == errno.ENOSPC
        overlay.prepare_flush()()
    with Overlay.open(path, image_id=IMAGE) as overlay:
        assert read(overlay, 0) == block(1)


def test_write_without_space_changes_no_state(path: Path, faulty: type[FaultyFile]) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        faulty.fail_write = 1
        with pytest.raises(StorageError):
            overlay.write(0, [block(1)])
        assert overlay.state(0) is State.ABSENT


@pytest.mark.parametrize("which", [1, 2])
def test_after_a_failed_fdatasync_nothing_is_trusted(
    path: Path, faulty: type[FaultyFile], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        overlay.write(0, [block(1)])
        overlay.prepare_flush()()
        overlay.write(BLOCK_SIZE, [block(2)])
        if which == 1:
            faulty.fail_sync = 1
        else:  # the one after the states: fail the sync that follows the next write
            original = FaultyFile.write

            def write(self: FaultyFile, offset: int, views: Sequence[memoryview | bytes]) -> None:
                original(self, offset, views)
                FaultyFile.fail_sync = 1

            monkeypatch.setattr(FaultyFile, "write", write)
        with pytest.raises(StorageError):
            overlay.prepare_flush()()
        assert faulty.fail_sync == 0
        for call in (
            overlay.prepare_flush(),
            lambda: overlay.write(0, [block(3)]),
            lambda: overlay.zero(0, 1),
            lambda: read(overlay, 0),
        ):
            with pytest.raises(StorageError, match="earlier flush failed"):
                call()
    with Overlay.open(path, image_id=IMAGE) as overlay:
        assert read(overlay, 0) == block(1)


def test_flushes_run_on_threads_while_writes_go_on(tmp_path: Path) -> None:
    path, count = tmp_path / "f", 9000
    chance = random.Random(1)
    overlay = Overlay.create(path, image_id=IMAGE, image_size=count * BLOCK_SIZE)
    expected: dict[int, int] = {}
    errors: list[BaseException] = []

    def run(flush: Callable[[], None]) -> None:
        try:
            flush()
        except BaseException as err:
            errors.append(err)

    with overlay:
        threads: list[threading.Thread] = []
        for turn in range(600):
            where, fill = chance.randrange(count), 1 + turn % 255
            overlay.write(where * BLOCK_SIZE, [block(fill)])
            expected[where] = fill
            if turn % 20 == 19:
                threads.append(threading.Thread(target=run, args=[overlay.prepare_flush()]))
                threads[-1].start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        overlay.prepare_flush()()
    assert errors == []
    with Overlay.open(path, image_id=IMAGE) as overlay:
        assert overlay.info().data_blocks == len(expected)
        for where, fill in expected.items():
            assert read(overlay, where) == block(fill)


def test_closing_waits_for_a_running_flush(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()

    class SlowFile(OverlayFile):
        def sync(self) -> None:
            started.set()
            assert go_on.wait(60)
            super().sync()

    monkeypatch.setattr(overlay_module, "OverlayFile", SlowFile)
    overlay = Overlay.open(path, image_id=IMAGE)
    overlay.write(0, [block(1)])
    flusher = threading.Thread(target=overlay.prepare_flush())
    flusher.start()
    assert started.wait(60)
    late = overlay.prepare_flush()
    closer = threading.Thread(target=overlay.close)
    closer.start()
    assert closer.is_alive()
    go_on.set()
    for thread in (flusher, closer):
        thread.join(60)
        assert not thread.is_alive()
    late()  # everything it promised is durable already
    with Overlay.open(path, image_id=IMAGE) as again:
        assert read(again, 0) == block(1)


# --- real processes, real full disks -------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from p2pcloop.formats.overlay import Overlay
overlay = Overlay.open(Path(sys.argv[1]), image_id=None)
for turn in range(1, 1_000_000):
    for n in (turn % 64, turn * 7 % 64):
        overlay.write(n * 4096, [memoryview(turn.to_bytes(8, "little") * 512)])
    overlay.prepare_flush()()
    print(turn, flush=True)
"""


def test_a_killed_writer_loses_nothing_flushed(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        try:
            for _ in range(40):
                flushed = int(writer.stdout.readline())
        finally:
            writer.kill()
        flushed = int(([str(flushed), *writer.stdout.read().split()])[-1])
        assert writer.wait(60) == -signal.SIGKILL
    last = {n: turn for turn in range(1, flushed + 1) for n in (turn % 64, turn * 7 % 64)}
    with Overlay.open(path, image_id=IMAGE) as overlay:
        for n, turn in last.items():
            content = read(overlay, n)
            found = int.from_bytes(content[:8], "little")
            assert turn <= found <= flushed + 1
            assert content == found.to_bytes(8, "little") * 512


FULL = """
import errno, sys
from pathlib import Path
from p2pcloop.errors import StorageError
from p2pcloop.formats.overlay import Overlay, State

def fill(n): return [memoryview(bytes([1 + n % 255]) * 4096)]

folder = Path(sys.argv[1])
path = folder / "mine.delta"
overlay = Overlay.create(path, image_id=b"i" * 32, image_size=64 << 20)
count = 0
try:
    while True:
        overlay.write(count * 4096, fill(count))
        count += 1
except StorageError as err:
    assert err.errno == errno.ENOSPC and str(path) in str(err) and err.hint, err
assert 100 < count < 256, count
assert overlay.runs(0, count + 1) == [(0, count, State.DATA), (count, 1, State.ABSENT)]
overlay.prepare_flush()()  # the state table has its room from the start
overlay.write(0, fill(0))  # in place: needs no room
overlay.zero(5, 1)
overlay.write(count * 4096, fill(count))  # in the room that 5 gave back
overlay.prepare_flush()()
overlay.close()
overlay = Overlay.open(path, image_id=b"i" * 32)
for n in range(count + 1):
    if n == 5:
        assert overlay.state(n) is State.ZERO
        continue
    buffer = bytearray(4096)
    overlay.read_into(n * 4096, [memoryview(buffer)])
    assert overlay.state(n) is State.DATA and buffer == fill(n)[0], n
overlay.close()
try:
    Overlay.create(folder / "more", image_id=b"i" * 32, image_size=64 << 20)
except StorageError as err:
    assert err.errno == errno.ENOSPC, err
assert list(folder.iterdir()) == [path]
print("held")
"""


def test_a_full_disk_refuses_writes_and_keeps_the_rest(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", tmp_path, sys.executable, "/dev/stdin"],
        input=FULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("held\n", "")
