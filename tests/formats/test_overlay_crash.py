"""The overlay against a model, with crashes at every instant between its writes and syncs.

The overlay runs on a real file; `Disk` notes what passes the seam to it and knows which versions
of each 4 KiB page a disk may hold after a crash: what the last fdatasync made durable, or anything
written since, chosen sector by sector. What writes do while a flush runs on another thread is
played inside the flush's own disk operations, so that every interleaving can be repeated.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pcloop.errors import StorageError
from p2pcloop.formats import overlay as overlay_module
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.formats.overlay_file import OverlayFile
from p2pcloop.units import BLOCK_SIZE

IMAGE = b"i" * 32
SECTOR = 512
COUNT = 4096 + 3  # the state table has two pages
PLACES = [0, 1, 4095, 4096, COUNT - 2]  # few, so that changes meet each other
STATE_PAGES = range(1, 3)
ZEROS = bytes(BLOCK_SIZE)

Action: TypeAlias = tuple[str, int, int]
"""What, first block, number of blocks."""
Choice: TypeAlias = Callable[[list[bytes]], bytes]
"""Which of a page's versions the crash leaves."""


class Disk(OverlayFile):
    """A file that remembers, page by page, what a crash may leave of it."""

    pages: dict[int, list[bytes]]  # durable content first, then what was written since
    moment: Callable[[], None]  # called before and after each operation of a flush
    holes = True  # whether room can be given back; if not, old data stays under a ZERO
    full = False  # no page of the state table can be written

    def note(self, offset: int, length: int) -> None:
        assert offset % BLOCK_SIZE == length % BLOCK_SIZE == 0
        for page in range(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE):
            content = os.pread(self._fd, BLOCK_SIZE, page * BLOCK_SIZE)
            self.pages.setdefault(page, [ZEROS]).append(content)

    def write(self, offset: int, views: Sequence[memoryview | bytes]) -> None:
        if isinstance(views[0], bytes):  # a page of the state table: this is a flush
            self.moment()
            if self.full:
                raise StorageError("no space", errno=errno.ENOSPC)
        super().write(offset, views)
        self.note(offset, sum(map(len, views)))

    def punch(self, offset: int, length: int) -> None:
        if self.holes:
            super().punch(offset, length)
            self.note(offset, length)

    def sync(self) -> None:
        self.moment()
        begun = {page: len(versions) for page, versions in self.pages.items()}
        self.moment()  # what is written while the disk works need not be durable after it
        super().sync()
        for page, length in begun.items():
            del self.pages[page][: length - 1]
        self.moment()

    def crashed(self, path: Path, states: Choice, data: Choice) -> None:
        """Write to `path` a file that a crash right now may leave."""
        with path.open("wb") as file:
            file.truncate(self.size)
            file.write(os.pread(self._fd, BLOCK_SIZE, 0))
            for page, versions in self.pages.items():
                file.seek(page * BLOCK_SIZE)
                file.write(states(versions) if page in STATE_PAGES else data(versions))


def oldest(versions: list[bytes]) -> bytes:
    return versions[0]


def newest(versions: list[bytes]) -> bytes:
    return versions[-1]


def torn(chance: random.Random) -> Choice:
    def mix(versions: list[bytes]) -> bytes:
        sectors = range(0, BLOCK_SIZE, SECTOR)
        return b"".join(chance.choice(versions)[at : at + SECTOR] for at in sectors)

    return mix


def base(block: int) -> bytes:
    return b"below%011d" % block * (BLOCK_SIZE // 16)


def content(overlay: Overlay, first: int, count: int) -> list[bytes]:
    """Read blocks the way a device does."""
    blocks = []
    for start, length, state in overlay.runs(first, count):
        buffer = bytearray(length * BLOCK_SIZE)
        if state is State.DATA:
            overlay.read_into(start * BLOCK_SIZE, [memoryview(buffer)])
        elif state is State.ABSENT:
            buffer[:] = b"".join(map(base, range(start, start + length)))
        blocks += [bytes(buffer[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE]) for n in range(length)]
    return blocks


@dataclass(frozen=True)
class Round:
    """Changes, then a flush during which other changes are made."""

    before: list[Action]
    meanwhile: list[Action | None]  # one at each moment of the flush, None for nothing
    late: int | None = None  # which flush prepared earlier to run; None for a new one
    full: bool = False  # the flush finds no space for states
    crash: bool = False  # go on from what a crash after it left
    die: int | None = None  # at which moment of the flush the process is killed; another opens


ACTIONS = st.tuples(
    st.sampled_from(["write", "write", "zero", "keep", "prepare"]),
    st.sampled_from(PLACES),
    st.integers(1, 2),
)
ROUNDS = st.builds(
    Round,
    before=st.lists(ACTIONS, min_size=1, max_size=4),
    meanwhile=st.lists(st.none() | ACTIONS, max_size=5),
    late=st.none() | st.integers(0, 3),
    full=st.sampled_from([False, False, False, True]),
    crash=st.sampled_from([False, False, False, True]),
    die=st.none() | st.integers(0, 5),
)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of the overlay's code runs on."""


class Machine:
    """An overlay on a `Disk`, with all that each block may hold after a crash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chance = random.Random(0)
        path = folder / "disk"
        Overlay.create(path, image_id=IMAGE, image_size=COUNT * BLOCK_SIZE).close()
        # For each block: (time, content), the first one durable, the last one what reads give.
        self.history: dict[int, list[tuple[int, bytes]]] = {}
        self.now = 0
        self.open(path)

    def open(self, path: Path, pages: dict[int, list[bytes]] | None = None) -> None:
        """Open the file: after a crash of the machine, or with what is not durable yet."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(overlay_module, "OverlayFile", Disk)
            self.overlay = Overlay.open(path, image_id=IMAGE)
        disk = self.overlay._file
        assert isinstance(disk, Disk)
        self.disk = disk
        self.disk.moment = lambda: None
        data = (self.overlay._data_offset // BLOCK_SIZE + block for block in self.history)
        self.disk.pages = pages or {
            page: [os.pread(disk._fd, BLOCK_SIZE, page * BLOCK_SIZE)]
            for page in (*STATE_PAGES, *data)
        }
        self.flushes: list[tuple[int, Callable[[], None]]] = []

    def act(self, action: Action) -> None:
        what, first, count = action
        if what == "prepare":
            self.flushes.append((self.now, self.overlay.prepare_flush()))
        else:
            self.now += 1
            datas = [ZEROS] * count
            if what == "write":
                datas = [(b"w%07d%08d" % (self.now, first + n)) * 256 for n in range(count)]
                self.overlay.write(first * BLOCK_SIZE, [memoryview(data) for data in datas])
            else:
                self.disk.holes = what == "zero"
                self.overlay.zero(first, count)
            for block, data in enumerate(datas, first):
                self.history.setdefault(block, [(0, base(block))]).append((self.now, data))

    def check_crash(self) -> Path:
        """Compare files that a crash may leave with all that may be in them; return the last.

        The worst first: states that ran ahead of their data.
        """
        path, mix = self.folder / "left", torn(self.chance)
        for states, data in ((newest, oldest), (oldest, newest), (mix, mix)):
            self.disk.crashed(path, states, data)
            with Overlay.open(path, image_id=IMAGE) as left:
                self.check(left)
        return path

    def check(self, left: Overlay) -> None:
        for first, count, state in left.runs(0, COUNT):
            if state is not State.ABSENT:
                assert all(block in self.history for block in range(first, first + count))
        for block, versions in self.history.items():
            (found,) = content(left, block, 1)
            for at in range(0, BLOCK_SIZE, SECTOR):
                allowed = {version[at : at + SECTOR] for _, version in versions}
                assert found[at : at + SECTOR] in allowed, (block, at, found[at : at + 16])

    def play(self, turn: Round) -> None:
        for action in turn.before:
            self.act(action)
        self.check_reads()
        if turn.late is None or not self.flushes:
            self.act(("prepare", 0, 0))
        time, call = self.flushes.pop(-1 if turn.late is None else turn.late % len(self.flushes))
        meanwhile = iter(turn.meanwhile)
        moments = itertools.count()

        def moment() -> None:
            self.check_crash()
            if next(moments) == turn.die:
                raise KilledError
            if (action := next(meanwhile, None)) is not None:
                self.act(action)

        self.disk.moment, self.disk.full = moment, turn.full
        try:
            call()
        except StorageError:
            assert turn.full
        except KilledError:
            self.go_on_in_another_process()
        else:
            self.forget_before(time)
        self.disk.moment, self.disk.full = lambda: None, False
        self.check_reads()
        left = self.check_crash()
        if turn.crash:
            self.go_on_from(left)

    def forget_before(self, time: int) -> None:
        """What a block held before the content that was flushed may not come back."""
        for versions in self.history.values():
            flushed = max(n for n, (at, _) in enumerate(versions) if n == 0 or at <= time)
            del versions[:flushed]

    def go_on_from(self, left: Path) -> None:
        self.overlay.close()
        self.open(left.rename(self.folder / "disk"))
        self.history = {
            block: [(0, data)] for block in self.history for data in content(self.overlay, block, 1)
        }

    def go_on_in_another_process(self) -> None:
        """The kernel has all that was written; what of it is durable is as it was."""
        pages = self.disk.pages
        self.overlay.close()
        self.open(self.folder / "disk", pages)
        self.now += 1
        for block, versions in self.history.items():
            versions.append((self.now, content(self.overlay, block, 1)[0]))

    def check_reads(self) -> None:
        for block, versions in self.history.items():
            assert content(self.overlay, block, 1) == [versions[-1][1]]


A, B = ("write", 0, 1), ("write", 1, 1)  # two blocks whose states share a page
PREPARE = ("prepare", 0, 0)


@given(st.lists(ROUNDS, min_size=1, max_size=8))
@example([Round([A], [None, B])])  # B's state must not go along before B's data
@example([Round([A], [None, B, PREPARE])])  # nor when it is prepared meanwhile
@example([Round([A, PREPARE, B], []), Round([PREPARE], [], late=0)])  # an old page comes late
@example([Round([A], [B, PREPARE], full=True), Round([A], [])])  # or after a failure
@example([Round([A], []), Round([A], [None, A]), Round([PREPARE], [])])  # no states, only data
@example([Round([A], [], die=4), Round([PREPARE], [])])  # states that were not synced
@example([Round([A], []), Round([A], [], die=0), Round([PREPARE], [])])  # nor data in place
@example([Round([("write", 4095, 2)], [])])  # states in two pages
@example([Round([A], []), Round([("keep", 0, 1)], []), Round([A], [])])  # old data under a ZERO
@settings(max_examples=50, deadline=None, derandomize=True)
def test_no_crash_loses_what_was_flushed_or_shows_garbage(rounds: list[Round]) -> None:
    with tempfile.TemporaryDirectory(prefix="ovl") as folder:
        machine = Machine(Path(folder))
        try:
            for turn in rounds:
                machine.play(turn)
        finally:
            machine.overlay.close()
