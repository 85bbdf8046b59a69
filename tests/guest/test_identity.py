"""What a state tells of its machine, and whether a host has the same one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import MismatchError
from p2pcloop.formats.machine_state import MachineState
from p2pcloopd.guest.machine.identity import (
    Host,
    check_host,
    describe_machine,
    differences,
    processor,
    shape_of,
)
from p2pcloopd.guest.machine.qemu_command import (
    NEEDED_FLAGS,
    Accelerator,
    Boots,
    FirmwareFiles,
    KernelFiles,
    Pc,
    PcCard,
)

HOST = Host(
    qemu="7.2.22 (Debian 1:7.2)",
    bios=b"b" * 32,
    uefi=b"u" * 32,
    why_no_kvm="",
    vendor="GenuineIntel",
    flags=NEEDED_FLAGS,
    memory=8 << 30,
)
CARDS = (
    PcCard("network", "dgram", 9, "52:54:00:70:32:01", 15900),
    PcCard("display", "tap", 10, "02:00:00:00:00:01", 1500),
)
PORTS = [(2, ""), (1, "agent")]
BOOTS: dict[str, Boots] = {
    "kernel": KernelFiles(Path("/k"), Path("/i"), "a b"),
    "vmlinux": KernelFiles(Path("/k"), Path("/i"), "a b", "vmlinux"),
    "bios": FirmwareFiles(),
    "uefi": FirmwareFiles(Path("/f"), 12),
}


def machine(
    boot: str = "kernel",
    accelerator: Accelerator = "tcg",
    cards: tuple[PcCard, ...] = CARDS,
    host: Host = HOST,
) -> MachineState:
    disks = (Path("/run/disks/0"),)
    pc = Pc(Path("/q"), accelerator, "x", 1 << 29, 6, disks, cards, 7, 8, BOOTS[boot], ports=True)
    return describe_machine(pc, PORTS, host, b"state", disk_length=1000, suspended=7)


@pytest.mark.parametrize("boot", BOOTS)
@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_a_state_tells_what_its_machine_has_and_nothing_of_its_host(
    boot: str, accelerator: Accelerator
) -> None:
    told = machine(boot, accelerator)
    told.check()
    words = " ".join(told.devices)
    assert "/run/disks" not in words
    assert "fd" not in words
    assert "virtserialport,nr=1,name=agent virtserialport,nr=2" in words
    shape = shape_of(told)
    assert (shape.boot, shape.accelerator, shape.memory) == (boot, accelerator, 1 << 29)
    assert shape.disks == 1
    assert [(card.role, card.kind, card.mac, card.mtu) for card in shape.cards] == [
        (card.role, "none", card.mac, card.mtu) for card in CARDS
    ]
    assert shape.ports == ((1, "agent"), (2, ""))
    assert differences(told, HOST) == []


def other(state: MachineState, **changes: Any) -> MachineState:
    return replace(state, **changes)


@pytest.mark.parametrize(
    "devices",
    [
        (*machine().devices, "virtio-balloon-pci"),
        machine().devices[1:],
        tuple(reversed(machine().devices)),
        tuple(word.replace("addr=02", "addr=1f") for word in machine().devices),
        tuple(word.replace("52:54:00", "52:54:00,script=/x") for word in machine().devices),
        tuple(word.replace("52:54:00", "/x=52:54:00") for word in machine().devices),
        tuple(word.replace("name=agent", "name=a,chardev=console") for word in machine().devices),
        tuple(word.replace("nr=1", "nr=01") for word in machine().devices),
    ],
)
def test_a_machine_that_is_none_of_ours_is_refused(devices: tuple[str, ...]) -> None:
    with pytest.raises(MismatchError, match="none that this p2pcloop makes") as caught:
        shape_of(other(machine(), devices=devices))
    assert caught.value.hint


def test_another_type_is_refused() -> None:
    with pytest.raises(MismatchError, match="pc-i440fx"):
        shape_of(other(machine(), type="pc-i440fx-7.2"))


@pytest.mark.parametrize(
    ("state", "host", "said", "help_"),
    [
        (machine(), {"qemu": "7.1.0"}, "older 7.1.0", "qemu-system-x86"),
        (machine(), {"bios": b"x" * 32}, "SeaBIOS, is another one", "seabios"),
        (machine(), {"bios": b""}, "SeaBIOS is not installed", "seabios"),
        (machine("uefi"), {"uefi": b"x" * 32}, "OVMF, is another one", "ovmf"),
        (machine(), {"memory": 1 << 28}, "536.9 MB of memory", "more memory"),
        (machine(accelerator="kvm"), {"why_no_kvm": "no /dev/kvm"}, "no /dev/kvm", "with KVM"),
        (machine(accelerator="kvm"), {"flags": frozenset()}, "lacks aes", "newer processor"),
        (machine(accelerator="kvm"), {"vendor": "AuthenticAMD"}, "GenuineIntel", "vendor"),
        (other(machine(), cpu="Nehalem"), {}, "`Nehalem`", "that suspended it"),
    ],
)
def test_what_differs_is_said_with_what_would_help(
    state: MachineState, host: dict[str, Any], said: str, help_: str
) -> None:
    with pytest.raises(MismatchError) as caught:
        check_host(state, replace(HOST, **host))
    assert said in str(caught.value)
    assert help_ in str(caught.value.hint)


@pytest.mark.parametrize(
    "host",
    [
        {"qemu": "7.2.1"},  # within 7.2, states go both ways
        {"qemu": "10.0.2 (Debian)"},
        {"vendor": "AuthenticAMD", "flags": frozenset(), "why_no_kvm": "none"},
        {"uefi": b""},
    ],
)
def test_what_does_not_matter_is_no_difference(host: dict[str, Any]) -> None:
    check_host(machine(), replace(HOST, **host))


def test_the_processor_of_this_host(tmp_path: Path) -> None:
    table = tmp_path / "cpuinfo"
    table.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu aes\n")
    assert processor(table) == ("GenuineIntel", frozenset({"fpu", "aes"}))
    other = tmp_path / "of another kind"
    other.write_text("processor : 0\n")
    assert processor(other) == ("", frozenset())
