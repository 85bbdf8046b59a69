"""What a block server writes of a boot: waits and spans, and nothing once a boot must be over."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.formats.timeline import MAX_SIZE, Span, Wait, decode_timeline
from p2pcloop.image.touches import MAX_SECONDS
from p2pcloopd.block.timeline_file import TimelineFile, processor_times


class Machine:
    """A clock, and the processors of a machine."""

    def __init__(self) -> None:
        self.now = 100.0
        self.busy = 0.0

    def clock(self) -> float:
        return self.now

    def processors(self) -> tuple[int, int]:
        return int(200 * self.busy), int(200 * (self.now - 100))

    def go_on(self, seconds: float, busy: float = 0.5) -> None:
        self.now += seconds
        self.busy += busy * seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


def file_at(path: Path, machine: Machine) -> TimelineFile:
    return TimelineFile(path, machine.clock, machine.processors)


def test_waits_and_what_came_are_written_as_they_happen(tmp_path: Path, machine: Machine) -> None:
    path = tmp_path / "timeline"
    path.write_text("of an earlier boot")
    file = file_at(path, machine)
    machine.go_on(0.05)
    file.add_bytes(1000)
    machine.go_on(0.95, busy=1.0)
    file.add_bytes(500)
    begin = machine.now
    machine.go_on(2, busy=0.25)
    file.add_wait(begin, 500)
    found = decode_timeline(path.read_bytes())
    assert found.waits == [Wait(1.0, 2.0, 500)]
    assert found.spans == [Span(0.0, 1.0, 1500, 0.97), Span(1.0, 2.0, 0, 0.25)]


def test_a_boot_that_is_over_and_a_file_that_is_long_get_no_more(
    tmp_path: Path, machine: Machine
) -> None:
    path = tmp_path / "timeline"
    file = file_at(path, machine)
    machine.go_on(1)
    file.add_bytes(1)
    size = path.stat().st_size
    machine.go_on(MAX_SECONDS)
    file.add_bytes(1)
    file.add_wait(machine.now - 1, 1)
    assert path.stat().st_size == size
    long = file_at(path, machine)
    while path.stat().st_size < MAX_SIZE:
        long.add_wait(machine.now, 1)
    size = path.stat().st_size
    long.add_wait(machine.now, 1)
    assert size == path.stat().st_size < MAX_SIZE + 100


def test_without_a_place_nothing_is_written_and_a_disk_that_refuses_ends_no_read(
    tmp_path: Path, machine: Machine
) -> None:
    for path in (None, tmp_path / "no" / "folder"):
        file = TimelineFile(path, machine.clock, machine.processors)
        machine.go_on(1)
        file.add_bytes(1)
        file.add_wait(machine.now, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_this_machines_processors_goes_on() -> None:
    busy, all_ = processor_times()
    assert 0 < busy <= all_
    later = processor_times()
    assert busy <= later[0]
    assert all_ <= later[1]
