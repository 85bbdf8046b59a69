"""The have file: bits survive, never lie after a crash, and torn files are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, NotHereError, StorageError
from p2pcloop.store.have import HEADER_SIZE, HaveFile, HaveView

INFO_HASH = bytes(range(20))


def test_layout_is_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "have"
    have = HaveFile.create(path, INFO_HASH, 11)
    have.add([0, 9])
    have.close()
    data = path.read_bytes()
    assert data[:36] == b"P2PCHAVE" + bytes([1, 0, 0, 0, 11, 0, 0, 0]) + INFO_HASH
    assert data[36:40].hex() == "1f2a739e"
    assert data[40:] == bytes([0x80, 0x40])


def test_create_complete(tmp_path: Path) -> None:
    for pieces in (1, 7, 8, 9, 64):
        path = tmp_path / str(pieces)
        have = HaveFile.create(path, INFO_HASH, pieces, complete=True)
        assert have.complete()
        assert have.to_list() == [True] * pieces
        have.close()
        with HaveView(path) as view:
            assert view.has(0, pieces - 1)
            assert not view.has(0, pieces)


def test_view_is_live(tmp_path: Path) -> None:
    have = HaveFile.create(tmp_path / "have", INFO_HASH, 100)
    with HaveView(tmp_path / "have") as view:
        assert view.info_hash == INFO_HASH
        assert not view.has(13, 13)
        have.add(range(13, 30))
        assert view.has(13, 29)
        assert not view.has(12, 29)
        assert not view.has(13, 30)
        have.drop(20)
        assert not view.has(13, 29)
        assert view.has(21, 29)
    have.close()


@pytest.mark.parametrize("size", [0, 8, HEADER_SIZE, HEADER_SIZE + 5])
def test_a_file_that_is_cut_short_while_in_use_is_an_error_then_whole_again(
    tmp_path: Path, size: int
) -> None:
    path = tmp_path / "have"
    have = HaveFile.create(path, INFO_HASH, 100)
    have.add(range(60))
    with HaveView(path) as view:
        os.truncate(path, size)
        with pytest.raises(FormatError, match="cut short"):
            view.has(40, 59)  # a mapping would end the process
        have.add([70])
        assert view.has(0, 59)
        assert view.has(70, 70)
        assert not view.has(60, 60)
    have.close()
    have = HaveFile.open(path, INFO_HASH, 100)
    assert have.count == 61
    have.close()


def test_a_reader_maps_no_file(tmp_path: Path) -> None:
    """Some file systems have no shared mappings: FUSE with `direct_io`."""
    HaveFile.create(tmp_path / "have", INFO_HASH, 100, complete=True).close()
    with HaveView(tmp_path / "have") as view:
        assert view.has(0, 99)
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_piece_outside_is_our_bug(tmp_path: Path) -> None:
    have = HaveFile.create(tmp_path / "have", INFO_HASH, 10)
    for piece in (-1, 10):
        with pytest.raises(ValueError, match="of 10"):
            have.add([piece])
    have.close()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotHereError):
        HaveFile.open(tmp_path / "have", INFO_HASH, 3)
    with pytest.raises(NotHereError):
        HaveView(tmp_path / "have")


def test_other_torrent(tmp_path: Path) -> None:
    HaveFile.create(tmp_path / "have", INFO_HASH, 16, complete=True).close()
    for info_hash, pieces in ((bytes(20), 16), (INFO_HASH, 15)):
        with pytest.raises(FormatError, match="another torrent"):
            HaveFile.open(tmp_path / "have", info_hash, pieces)


def test_write_error_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = HaveFile.create(tmp_path / "have", INFO_HASH, 16)
    full = OSError(28, "No space left on device")

    def refuse(*_: object) -> int:
        raise full

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(StorageError) as caught:
        have.add([3])
    assert caught.value.errno == 28
    have.close()


@given(damage=st.data())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_damaged_header_is_refused(tmp_path: Path, damage: st.DataObject) -> None:
    path = tmp_path / "have"
    HaveFile.create(path, INFO_HASH, 21, complete=True).close()
    data = bytearray(path.read_bytes())
    if damage.draw(st.booleans()):
        del data[damage.draw(st.integers(0, len(data) - 1)) :]
    else:
        data[damage.draw(st.integers(0, HEADER_SIZE - 1))] ^= damage.draw(st.integers(1, 255))
    path.write_bytes(data)
    with pytest.raises(FormatError):
        HaveFile.open(path, INFO_HASH, 21)
    with pytest.raises(FormatError):
        HaveView(path)


def _record(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes] | None]:
    """Log every write of a byte, and None for every sync, while doing them."""
    log: list[tuple[int, bytes] | None] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def logged_pwrite(fd: int, data: bytes, offset: int) -> int:
        log.append((offset, bytes(data)))
        return pwrite(fd, data, offset)

    def logged_fdatasync(fd: int) -> None:
        log.append(None)
        fdatasync(fd)

    monkeypatch.setattr(os, "pwrite", logged_pwrite)
    monkeypatch.setattr(os, "fdatasync", logged_fdatasync)
    return log


def _crash(
    image: bytearray, log: list[tuple[int, bytes] | None], survives: Callable[[], bool]
) -> None:
    """Apply what a disk may hold: all that was synced, any part of what came after."""
    synced = max((i for i, entry in enumerate(log) if entry is None), default=-1)
    for index, entry in enumerate(log):
        if entry is not None and (index < synced or survives()):
            assert len(entry[1]) == 1
            image[entry[0] : entry[0] + 1] = entry[1]


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 36), max_size=12)),
        st.tuples(st.just("drop"), st.integers(0, 36)),
    ),
    max_size=8,
)


@given(steps=_steps, data=st.data())
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_crash_between_steps(
    tmp_path: Path, steps: list[tuple[str, list[int] | int]], data: st.DataObject
) -> None:
    path = tmp_path / "have"
    have = HaveFile.create(path, INFO_HASH, 37)
    image = bytearray(path.read_bytes())
    before: set[int] = set()
    after: set[int] = set()
    boundaries = [0]
    models = [(before, after)]
    with pytest.MonkeyPatch.context() as patch:
        log = _record(patch)
        for action, argument in steps:
            before = set(after)
            if isinstance(argument, list):
                assert action == "add"
                have.add(argument)
                after = before | set(argument)
            else:
                have.drop(argument)
                after = before - {argument}
            models.append((before, after))
            boundaries.append(len(log))
    assert have.to_list() == [piece in after for piece in range(37)]
    have.close()

    cut = data.draw(st.integers(0, len(log)))
    _crash(image, log[:cut], lambda: data.draw(st.booleans()))
    path.write_bytes(image)
    step = next(i for i, boundary in enumerate(boundaries) if boundary >= cut)
    old, new = models[step]
    recovered = HaveFile.open(path, INFO_HASH, 37)
    here = {piece for piece, bit in enumerate(recovered.to_list()) if bit}
    recovered.close()
    assert old & new <= here <= old | new
