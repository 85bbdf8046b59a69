"""What a boot's report says of its image, and where it is written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from p2pcloop.errors import StorageError
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloopd.guest.report import SAID_SECONDS, Outcome, image_facts, write_report

FACTS = {"exit": "poweroff", "name": "ä" * 5_000}


@pytest.mark.parametrize("size", [8192, 5000])
def test_the_image_has_its_true_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.img").write_bytes(bytes(size))
    facts = image_facts(inspect_file(tmp_path / "a.img"), None, Home.at(tmp_path / "home"))
    assert facts["image_size"] == size


def test_what_a_guest_prints_is_noted_once_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.5, 101.0, 101.001, 101.002, 102.0, 101.0 + SAID_SECONDS])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    outcome = Outcome(started=100.0)
    outcome.hear(b"from its machine")
    outcome.went_on = 100.7
    for _ in range(5):
        outcome.hear(b"#")
    assert outcome.said == [101.002, 102.0]


def test_a_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text("x" * 1_000_000)
    write_report(path, FACTS)
    assert json.loads(path.read_text(encoding="utf-8")) == FACTS


def test_a_pipe_gets_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        write_report(path, FACTS)  # less than the pipe holds
        assert json.loads(pipe.read()) == FACTS


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(StorageError, match="no program reads it"):
        write_report(path, FACTS)
