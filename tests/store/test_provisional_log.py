"""The log of provisional ranges: what was kept is read, whatever was cut off at its end."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pcloop.store.provisional_log import FILE_NAME, ProvisionalLog, kept_ranges

GOLDEN = Path(__file__).parent.parent / "data" / "parts-v1.bin"
SLOT = 10_000
"""Ranges of the tests begin at multiples of it, and are shorter."""


def make_golden(directory: Path) -> None:
    parts = ProvisionalLog(directory)
    parts.keep({0: b"abc", 100: b"d"})
    parts.forget([0])
    parts.keep({7: b"efgh"})


def test_the_golden_log_is_written_and_read(tmp_path: Path) -> None:
    make_golden(tmp_path)
    written = (tmp_path / FILE_NAME).read_bytes()
    assert written == GOLDEN.read_bytes()
    parts = ProvisionalLog(tmp_path)
    assert parts.ranges == [(7, 4), (100, 1)]
    assert [parts.read(at) for at in (7, 100, 0)] == [b"efgh", b"d", None]


def test_who_does_not_own_a_log_reads_it_and_changes_nothing(tmp_path: Path) -> None:
    assert kept_ranges(tmp_path) == []
    make_golden(tmp_path)
    log = tmp_path / FILE_NAME
    log.write_bytes(log.read_bytes() + b"torn")
    before = log.read_bytes()
    assert kept_ranges(tmp_path) == [(7, 4), (100, 1)]
    assert log.read_bytes() == before
    log.write_bytes(b"nonsense")
    assert kept_ranges(tmp_path) == []


class Log(RuleBasedStateMachine):
    """Ranges kept, forgotten and read; the log opened anew, also with its end torn off."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="p2pl-"))
        self.parts = ProvisionalLog(self.directory)
        self.model: dict[int, bytes] = {}
        self.random = random.Random(0)

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @rule(slots=st.sets(st.integers(0, 9)), size=st.integers(1, SLOT))
    def keep(self, slots: set[int], size: int) -> None:
        fresh = {slot * SLOT: self.random.randbytes(size) for slot in sorted(slots)}
        fresh = {at: data for at, data in fresh.items() if at not in self.model}
        self.parts.keep(fresh)
        self.model |= fresh

    @rule(slots=st.sets(st.integers(0, 9)))
    def forget(self, slots: set[int]) -> None:
        self.parts.forget([slot * SLOT for slot in sorted(slots)])
        for slot in slots:
            self.model.pop(slot * SLOT, None)

    @rule()
    def open_anew(self) -> None:
        self.parts = ProvisionalLog(self.directory)

    @rule(cut=st.integers(1, 2 * SLOT))
    def lose_the_end(self, cut: int) -> None:
        """A crash: the last range is lost, or some; what was whole before is right."""
        path = self.directory / FILE_NAME
        if path.exists():
            os.truncate(path, max(0, path.stat().st_size - cut))
            self.parts = ProvisionalLog(self.directory)
            assert set(self.parts.ranges) <= {(at, len(data)) for at, data in self.model.items()}
            self.model = {at: self.model[at] for at, _ in self.parts.ranges}

    @invariant()
    def says_what_is_kept(self) -> None:
        assert self.parts.ranges == sorted((at, len(data)) for at, data in self.model.items())
        for slot in range(10):
            assert self.parts.read(slot * SLOT) == self.model.get(slot * SLOT)


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=60, deadline=None)


def test_nothing_is_made_before_something_is_kept_and_nothing_is_left(tmp_path: Path) -> None:
    parts = ProvisionalLog(tmp_path)
    parts.forget([1])
    parts.keep({})
    assert list(tmp_path.iterdir()) == []
    parts.keep({5: b"x"})
    parts.forget([5])
    assert list(tmp_path.iterdir()) == []
    parts.keep({5: b"y"})
    assert ProvisionalLog(tmp_path).read(5) == b"y"


@given(data=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_no_log(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    parts = ProvisionalLog(tmp_path)
    assert parts.ranges == []
    parts.keep({3: b"abc"})
    assert ProvisionalLog(tmp_path).read(3) == b"abc"


def test_a_range_whose_bytes_changed_is_not_read(tmp_path: Path) -> None:
    ProvisionalLog(tmp_path).keep({0: b"a" * 100, 100: b"b" * 100})
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"aaa", b"abc", 1))
    parts = ProvisionalLog(tmp_path)
    assert parts.ranges == [(0, 100), (100, 100)]
    assert (parts.read(0), parts.read(100)) == (None, b"b" * 100)


def test_the_directory_of_before_goes(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    (tmp_path / FILE_NAME / "0-3").write_bytes(b"abc")
    parts = ProvisionalLog(tmp_path)
    assert parts.ranges == []
    parts.keep({0: b"abc"})
    assert parts.read(0) == b"abc"


def test_what_was_written_before_the_disk_refuses_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ProvisionalLog(tmp_path)
    parts.keep({0: b"first"})
    pwrite, left = os.pwrite, [1]

    def refuse(fd: int, data: bytes, at: int) -> int:
        if left[0]:
            left[0] -= 1
            return pwrite(fd, data, at)
        raise OSError(28, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match="no room"):
            parts.keep({10: b"second", 20: b"third"})
    assert parts.ranges == [(0, 5), (10, 6)]
    parts.keep({20: b"third"})
    again = ProvisionalLog(tmp_path)
    assert [again.read(at) for at in (0, 10, 20)] == [b"first", b"second", b"third"]
