"""The bench's own arithmetic, and its two readers of foreign formats against foreign programs."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from bench import rivals, seed
from bench.__main__ import MEASURES, main, parse
from bench.fetch import scattered_data
from bench.figure import Report, Started
from bench.harness import (
    Bench,
    BenchError,
    Contenders,
    Measure,
    Row,
    Values,
    run_measure,
)
from bench.links.least import touched_bytes
from bench.memory import resident_mb
from bench.nbd_reader import NbdReader
from bench.packing import sample_files
from bench.processes import run, run_json, server, serving
from bench.rivals import (
    casync_bytes,
    changed_blocks,
    rsync_bytes,
    xdelta_bytes,
    zstd_bytes,
)

BENCH = Bench(Path("image"), Path("cloop"), Path("p2pcloop"), Path("work"), 0)


def measure(contenders: Contenders, *rows: Row) -> Measure:
    @contextmanager
    def entered(_bench: Bench) -> Iterator[Contenders]:
        yield contenders

    return Measure("measure", "about", {"s": "s"}, rows, entered)


def taken(measured: Measure, rounds: int) -> Report:
    started = Started.now("tools/bench measure", {})
    return run_measure(measured, BENCH, rounds, started, lambda _line: None)


def test_contenders_take_turns_and_the_first_changes() -> None:
    order: list[str] = []

    def contender(label: str) -> Values:
        order.append(label)
        return {"s": 1}

    taken(measure({"a": lambda: contender("a"), "b": lambda: contender("b")}), 4)
    assert "".join(order) == "abbaabba"


def test_a_ratio_is_of_medians_and_held_against_the_bar() -> None:
    ours, theirs = iter([3, 100, 1, 4, 5]), iter([2, 2, 50, 1, 2])
    rows = (
        Row("most", ("ours", "s"), 2.0, ("theirs", "s")),
        Row("least", ("ours", "s"), 2.1, ("theirs", "s"), at_least=True),
        Row("plain", ("ours", "s"), 3.9),
    )
    contenders = {"ours": lambda: {"s": next(ours)}, "theirs": lambda: {"s": next(theirs)}}
    result = taken(measure(contenders, *rows), 5)
    found = [
        (bar.ours.value, bar.base and bar.base.value, bar.value.value, bar.reached)
        for bar in result.bars
    ]
    assert found == [(4, 2, 2.0, True), (4, 2, 2.0, False), (4, None, 4, False)]
    [ours_figure, theirs_figure] = result.figures
    assert (ours_figure.by, ours_figure.values) == ("ours", (3, 100, 1, 4, 5))
    assert (theirs_figure.by, theirs_figure.unit) == ("theirs", "s")
    assert not result.reached


def test_a_measure_that_fails_is_told_and_keeps_what_it_had() -> None:
    values = iter([{"s": 1.0}])

    def contender() -> Values:
        for value in values:
            return value
        raise BenchError("the server went away")

    result = taken(measure({"a": contender}, Row("row", ("a", "s"), 1)), 2)
    assert (result.error, result.bars, result.reached) == ("the server went away", (), False)
    assert [figure.values for figure in result.figures] == [(1.0,)]


def test_the_command_knows_its_measures() -> None:
    assert parse(["seed", "help", "--rounds", "2"]).measures == ["seed", "help"]
    for wrong in (["nonsense"], ["--rounds", "0"], ["--rounds", "x"]):
        with pytest.raises(SystemExit) as caught:
            parse(wrong)
        assert caught.value.code == 2


def test_rows_name_a_bar_for_each_measure() -> None:
    assert all(m.rows and m.name == name for name, m in MEASURES.items())
    named = [
        (m, pair) for m in MEASURES.values() for row in m.rows for pair in (row.ours, row.base)
    ]
    assert all(pair is None or pair[1] in m.units for m, pair in named)


def test_a_program_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(BenchError, match="ended with 3: it hurts"):
        run(["sh", "-c", "echo it hurts >&2; exit 3"])
    with pytest.raises(BenchError, match="printed no JSON: 'plain'"):
        run_json(["printf", "plain"])
    assert run_json(["printf", 'hello\n{"a": 1}']) == {"a": 1}


def test_a_server_that_ends_early_is_told_with_its_words(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo no room; exit 4"]
    with (
        pytest.raises(BenchError, match="ended with 4: no room"),
        server(argv, tmp_path / "s", tmp_path / "log"),
    ):
        pass


def test_memory_counts_children() -> None:
    alone = resident_mb(os.getpid())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert 0 < resident_mb(child.pid) < alone
        assert resident_mb(os.getpid()) > resident_mb(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert resident_mb(os.getpid()) > 0
        with pytest.raises(BenchError, match="has ended"):
            resident_mb(child.pid)


@pytest.mark.interop
def test_touched_bytes_add_up_blocks_of_a_real_cloop(tmp_path: Path) -> None:
    image, cloop = tmp_path / "image", tmp_path / "cloop"
    image.write_bytes(os.urandom(65536) + bytes(65536) + b"text" * 16384 + os.urandom(65536))
    run(["create_compressed_fs", "-B", "65536", image, cloop])
    offsets = struct.unpack(">5Q", cloop.read_bytes()[136:176])
    sizes = [end - start for start, end in itertools.pairwise(offsets)]
    assert touched_bytes(cloop, []) == 0
    assert touched_bytes(cloop, [(0, 1), (512, 4096)]) == sizes[0]
    assert touched_bytes(cloop, [(65535, 2)]) == sizes[0] + sizes[1]
    assert touched_bytes(cloop, [(0, 4 * 65536)]) == sum(sizes)


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    """Two images: the second has 1 MiB that nothing compresses, and zeros where data was."""
    noise = random.Random(2).randbytes
    old, new = tmp_path / "old", tmp_path / "new"
    data = bytearray(noise(4 << 20))
    old.write_bytes(data)
    data[1 << 20 : 2 << 20] = noise(1 << 20)
    data[3 << 20 :] = bytes(1 << 20)
    new.write_bytes(data)
    return old, new


def test_changed_blocks_are_those_that_differ_and_hold_data(versions: tuple[Path, Path]) -> None:
    old, new = versions
    changed = list(changed_blocks(old, new))
    assert [offset for offset, _ in changed] == list(range(1 << 20, 2 << 20, 4096))
    assert b"".join(block for _, block in changed) == new.read_bytes()[1 << 20 : 2 << 20]


@pytest.mark.interop
@pytest.mark.parametrize("count", [zstd_bytes, rsync_bytes, casync_bytes, xdelta_bytes])
def test_a_rival_moves_what_changed_and_a_little_more(
    count: Callable[[Path, Path, Path], int],
    versions: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rivals, "CASYNC_CHUNKS", (64 << 10,))  # small ones take it minutes
    assert 1 << 20 < count(*versions, tmp_path) < 2 << 20


@pytest.mark.interop
def test_the_nbd_reader_reads_what_nbdkit_serves(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 << 20) + bytes(3 << 20) + os.urandom(1 << 20))
    blocks = scattered_data(image)
    assert sorted(blocks) == [1 << 20, 2 << 20]  # 3, 4 and 5 MiB are zeros; the ends are left out
    socket = tmp_path / "s"
    with server(["nbdkit", "-f", "-U", socket, "file", image], socket, tmp_path / "log"):
        reader = NbdReader(socket)
        assert {offset: reader.read(offset) for offset in blocks} == blocks
        with pytest.raises(BenchError, match="error"):
            reader.read(image.stat().st_size)
        reader.close()


def test_files_are_drawn_by_their_names_until_there_are_enough(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / str(number % 3) / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(3000))
    (tmp_path / "link").symlink_to(tmp_path / "0")
    some = list(sample_files(tmp_path, 5 * 4096))
    assert len(set(some)) == 5
    assert list(sample_files(tmp_path, 9 * 4096))[:5] == some
    assert {path.parent.name for path in sample_files(tmp_path, 19 * 4096)} == {"0", "1", "2"}
    with pytest.raises(BenchError, match="too few"):
        list(sample_files(tmp_path, 21 * 4096))


def test_an_interrupt_ends_it_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_image: str, **_options: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.__main__.opened_bench", interrupted)
    assert main(["help"]) == 130


def test_a_server_that_dies_with_its_file_system_is_a_failed_measure(tmp_path: Path) -> None:
    """As btfs does: then every look at its mount is an error."""

    def look() -> bool:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    argv = ["sh", "-c", "echo it died >&2; exit 3"]
    with (
        pytest.raises(BenchError, match="ended with 3: it died"),
        serving(argv, look, tmp_path / "log"),
    ):
        pass


def test_the_memory_of_a_program_is_its_own() -> None:
    """A new process has the bench's memory until its exec, and `ru_maxrss` counts that."""
    ours = b"x" * (400 << 20)
    work = "x = b'x' * (120 << 20); [None for _ in range(10_000_000)]"
    values = seed._run([sys.executable, "-c", work])
    del ours
    assert 120 << 20 < values["memory"] < 300 << 20
    assert values["processor"] > 0
