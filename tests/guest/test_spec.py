"""What a guest may be asked to be."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import UsageError
from p2pcloopd.guest.spec import GuestSpec, machine_memory


@pytest.fixture
def disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as sock:
        path = Path(directory) / "disk"
        sock.bind(str(path))
        yield path


def test_sound(disk: Path) -> None:
    spec = GuestSpec(disk, append="quiet systemd.unit='rescue.target' PS1='a b' ")
    spec.check()
    assert spec.append_words() == ["quiet", "systemd.unit=rescue.target", 'PS1="a b"']
    assert spec.cpu in os.sched_getaffinity(0)


@pytest.mark.parametrize(
    "bad",
    [
        {"memory": 1 << 20},
        {"memory": machine_memory() + 1},
        {"disk_socket": Path("/nonexistent")},
        {"disk_socket": Path("/etc/passwd")},
        {"cpu": 1 << 20},
        {"append": "a 'b"},
        {"append": "a\nb"},
        {"append": "a='\"'"},
        {"append": "x" * 5000},
    ],
)
def test_refused(disk: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GuestSpec(**{"disk_socket": disk, **bad}).check()


def test_a_cpu_that_is_not_ours_names_those_that_are(disk: Path) -> None:
    with pytest.raises(UsageError) as caught:
        GuestSpec(disk, cpu=1 << 20).check()
    allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    assert caught.value.hint == f"allowed are {allowed}"
