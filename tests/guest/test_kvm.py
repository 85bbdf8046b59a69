"""Whether KVM is taken: by what a probe does, not by whether a device is there."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2pcloopd.guest.machine import kvm, qemu
from p2pcloopd.guest.machine.qemu import QemuMachine
from p2pcloopd.guest.machine.qemu_command import CPU, Accelerator, FirmwareFiles, Pc, cpu_words
from p2pcloopd.guest.sandbox import bubblewrap
from p2pcloopd.guest.system.kernel import Kernel
from tests.support.waiting import BOUND

KERNEL = Kernel(Path("/vmlinuz"), "6.1", None)
BUSYBOX = ["/bin/busybox", "sh", "-c"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in the place of /dev/kvm."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(kvm, "DEVICE", path)
    return path


def test_a_guest_that_runs_to_its_end_is_proof(device: Path) -> None:
    assert kvm.run_probe([*BUSYBOX, "exit 0"], limit=BOUND).is_usable
    device.unlink()
    found = kvm.run_probe([*BUSYBOX, "exit 0"])
    assert not found.is_usable
    assert str(device) in found.why_not


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("script", "limit", "why"),
    [
        ("sleep 1000", 0.1, "too slowly"),
        ("kill -9 $$", BOUND, "status -9"),
        ("echo no permission; exit 1", BOUND, "no permission"),
        (r"printf '\033[2Jclear'; exit 1", BOUND, r"\x1b[2Jclear"),
    ],
)
def test_what_is_none_is_told(script: str, limit: float, why: str) -> None:
    found = kvm.run_probe([*BUSYBOX, script], limit=limit)
    assert not found.is_usable
    assert why in found.why_not


def test_a_program_that_cannot_be_run(device: Path) -> None:
    assert device.exists()
    assert "cannot be tried" in kvm.run_probe(["/nowhere/python"]).why_not


def test_the_probe_of_a_file_that_is_no_kvm(device: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(kvm._PROBE), str(device)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == f"{device} cannot be used: Inappropriate ioctl for device\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(kvm._PROBE), str(device) + "-"],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert "No such file" in done.stdout


def test_the_machine_that_this_test_runs_on_is_judged_in_time() -> None:
    """Whatever it has: KVM, none, or one that opens and runs no guest."""
    found = kvm.run_probe([sys.executable, "-I", "-S", str(kvm._PROBE), str(kvm.DEVICE)])
    if not kvm.DEVICE.exists():
        assert "has no /dev/kvm" in found.why_not


@pytest.mark.parametrize(
    ("why_not", "name", "told"),
    [
        ("", "qemu (kvm)", "runs in QEMU, with KVM"),
        ("/dev/kvm is asleep", "qemu (tcg)", "without KVM, which takes longer: /dev/kvm is asleep"),
    ],
)
def test_a_guest_runs_by_what_the_probe_found(
    monkeypatch: pytest.MonkeyPatch, why_not: str, name: str, told: str
) -> None:
    monkeypatch.setattr(kvm, "probe_kvm", lambda: kvm.Kvm(why_not))
    unpacked: list[bool] = []
    monkeypatch.setattr(
        qemu, "_kernel_files", lambda *_, **words: unpacked.append(words["unpacked"])
    )
    spec: Any = SimpleNamespace(firmware=None, kernel=KERNEL)
    machine = QemuMachine(KERNEL)
    assert (machine.name, machine.remark.endswith(told)) == (name, True)
    # With KVM a kernel unpacks itself: it does so quickly, and at an address of its choice.
    machine._boots(spec, None, ExitStack())
    assert unpacked == [name == "qemu (tcg)"]


@pytest.mark.parametrize(("accelerator", "devices"), [("kvm", [kvm.DEVICE]), ("tcg", [])])
def test_only_a_guest_of_kvm_gets_its_device(
    monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator, devices: list[Path]
) -> None:
    given: dict[str, Any] = {}

    def prepare(command: list[str], **options: Any) -> None:
        given.update(options, command=command)

    monkeypatch.setattr(bubblewrap, "prepare", prepare)
    pc = Pc(Path("/q"), accelerator, CPU, 512 << 20, 6, (), (), 7, 8, FirmwareFiles())
    qemu._boxed(pc, {})
    assert given["devices"] == devices
    chosen = given["command"][given["command"].index("-accel") + 1]
    assert chosen.split(",")[0] == accelerator


def test_the_vendor_of_the_processor_is_the_hosts_with_kvm_alone() -> None:
    assert cpu_words("kvm", "GenuineIntel") == f"{CPU},vendor=GenuineIntel"
    assert cpu_words("tcg", "GenuineIntel") == CPU
