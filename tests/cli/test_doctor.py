"""`p2pcloop doctor`: what it finds here, and on a machine that lacks what guests need."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from p2pcloopd.commands import doctor
from p2pcloopd.guest.machine import kvm
from tests.support.command import Run


def look(p2pcloop: Run, code: int) -> dict[str, dict[str, Any]]:
    ran = p2pcloop("doctor", "--json")
    assert ran.code == code, ran.err
    return {facts["what"]: facts for facts in json.loads(ran.out)["checks"]}


def test_what_guests_need_is_here(p2pcloop: Run, home: Path) -> None:
    """All of it is installed by the project's own set-up; KVM may run nothing here."""
    found = look(p2pcloop, 0)
    missing = {what for what, facts in found.items() if facts["result"] != "ok"}
    assert missing <= {"KVM", "netboot"}
    assert found["the sandbox"]["said"] == "a program ran in it"
    assert list(home.iterdir()) == [], "nothing is made"


def test_the_text_names_what_needs_each(p2pcloop: Run) -> None:
    lines = p2pcloop("doctor").out.splitlines()
    assert any(line.startswith("ok       FUSE (for mount): ") for line in lines)


def test_a_node_that_runs_is_told(p2pcloop: Run) -> None:
    pid = p2pcloop("daemon", "start", "--json").json["pid"]
    try:
        told = look(p2pcloop, 0)["p2pcloopd"]
    finally:
        p2pcloop("daemon", "stop")
    assert told["said"].startswith(f"process {pid}; peers reach it at 127.0.0.1:")


@pytest.mark.parametrize(
    ("why_not", "may", "result", "hint"),
    [
        ("", True, "ok", None),
        ("it is too slow", True, "absent", None),
        ("it cannot be used", False, "absent", "adduser $USER kvm"),
    ],
)
def test_kvm_is_what_the_probe_found(
    p2pcloop: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    why_not: str, may: bool, result: str, hint: str | None,
) -> None:  # fmt: skip
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm, "probe_kvm", lambda: kvm.Kvm(why_not))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *m: may if path == device else access(path, *m))
    found = look(p2pcloop, 0)["KVM"]
    assert found["result"] == result
    assert found["said"].startswith(why_not or "a guest ran in it")
    assert (hint or "") in (found["hint"] or "")
    assert bool(found["hint"]) == bool(hint)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no program is found."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("shutil.which", lambda _name, path=None: None)  # noqa: ARG005


@pytest.mark.usefixtures("bare")
def test_what_is_missing_is_named_with_its_package(p2pcloop: Run) -> None:
    found = look(p2pcloop, 1)
    assert found["busybox"]["result"] == "missing"
    packages = {
        "busybox": "busybox-static",
        "mke2fs": "e2fsprogs",
        "user network": "libslirp-helper",
        "a display": "tigervnc-standalone-server",
        "FUSE": "fuse3",
        "QEMU": "qemu-system-x86",
        "qemu-img": "qemu-utils",
    }
    for what, package in packages.items():
        assert f"apt-get install {package}" in found[what]["hint"]
    assert found["mke2fs"]["result"] == "absent", "only some images need it"


def test_a_clock_that_is_behind_is_told(p2pcloop: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    facts = look(p2pcloop, 1)["the clock"]
    assert facts["result"] == "missing"
    assert "1970-01-12" in facts["said"]


def test_a_disk_without_room_is_told(p2pcloop: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_ROOM", 1 << 60)
    facts = look(p2pcloop, 1)["room on the disk"]
    assert "gc" in facts["hint"]
