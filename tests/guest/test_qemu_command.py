"""QEMU's command line: what a guest's machine is, and that it stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.errors import NeedsPackageError
from p2pcloopd.guest.machine import firmware
from p2pcloopd.guest.machine.qemu_boot import is_halted
from p2pcloopd.guest.machine.qemu_command import (
    CPU,
    Accelerator,
    Boots,
    FirmwareFiles,
    KernelFiles,
    KernelForm,
    Pc,
    PcCard,
    RunningKernel,
    command_line,
)

ACCELERATORS: tuple[Accelerator, ...] = ("kvm", "tcg")
KERNEL = KernelFiles(
    Path("/run/boot/vmlinuz"), Path("/run/boot/initramfs.cpio"), "console=ttyS0 a=b"
)


def words_for(
    boots: Boots = KERNEL,
    *,
    accelerator: Accelerator = "tcg",
    cards: tuple[PcCard, ...] = (),
    ports: bool = False,
    arrives: bool = False,
    disks: int = 1,
) -> list[str]:
    sockets = tuple(Path(f"/run/disks/{n}") for n in range(disks))
    return command_line(
        Pc(
            Path("/q"),
            accelerator,
            CPU,
            512 << 20,
            6,
            sockets,
            cards,
            7,
            8,
            boots,
            ports=ports,
            arrives=arrives,
        )
    )


def values(words: list[str], option: str) -> list[str]:
    return [words[n + 1] for n, word in enumerate(words) if word == option]


def test_machine_processor_and_memory_do_not_depend_on_the_host() -> None:
    for words in (words_for(accelerator=accelerator) for accelerator in ACCELERATORS):
        (machine,) = values(words, "-machine")
        assert machine.startswith("pc-q35-7.2,memory-backend=ram")
        (cpu,) = values(words, "-cpu")
        assert cpu.startswith("qemu64,")
        assert values(words, "-m") == ["524288k"]
        assert values(words, "-accel")[0] in ("kvm", "tcg,tb-size=256")
        assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)


def test_everything_that_qemu_can_be_denied_is_denied() -> None:
    (sandbox,) = values(words_for(), "-sandbox")
    denied = {"obsolete", "elevateprivileges", "spawn", "resourcecontrol"}
    assert sandbox.split(",")[0] == "on"
    assert {word.removesuffix("=deny") for word in sandbox.split(",")[1:]} == denied
    assert all(word.endswith("=deny") for word in sandbox.split(",")[1:])


def test_each_device_has_a_place_of_its_own() -> None:
    cards = (
        PcCard("network", "dgram", 9, "52:54:00:70:32:01", 15900),
        PcCard("display", "dgram", 10, "52:54:00:70:32:02", 15900),
    )
    words = words_for(cards=cards, ports=True, disks=2)
    devices = [each for each in values(words, "-device") if "-pci" in each]
    places = [field for each in devices for field in each.split(",") if field.startswith("addr=")]
    assert "vmgenid,guid=auto" in values(words, "-device")
    assert len(devices) == 6
    assert len(set(places)) == 6
    assert any("host_mtu=15900" in each and "mac=52:54:00:70:32:01" in each for each in devices)
    assert "dgram,id=network,local.type=fd,local.str=9" in values(words, "-netdev")
    # A device that is left out moves none of the others.
    fewer = values(words_for(cards=cards[1:]), "-device")
    assert set(fewer) <= set(values(words, "-device"))


def test_disks_wait_for_a_block_server_that_is_started_again() -> None:
    for accelerator in ACCELERATORS:
        words = words_for(accelerator=accelerator, disks=2)
        assert not any("vhost" in word for word in words)
        disks = [dict(field.split("=", 1) for field in word.split(","))
                 for word in values(words, "-blockdev")]  # fmt: skip
        assert [disk["server.path"] for disk in disks] == ["/run/disks/0", "/run/disks/1"]
        assert {disk["driver"] for disk in disks} == {"nbd"}
        assert all(int(disk["reconnect-delay"]) > 600 for disk in disks)


def test_the_memory_is_a_file_that_qemu_inherits() -> None:
    (memory, *_) = values(words_for(), "-object")
    assert "share=on" in memory
    assert "mem-path=/proc/self/fd/6" in memory


def test_a_tap_is_given_by_its_descriptor() -> None:
    words = words_for(cards=(PcCard("network", "tap", 9, "02:00:00:00:00:01", 1500),))
    assert values(words, "-netdev") == ["tap,id=network,fd=9,vhost=off"]


def test_a_kernel_gets_its_words_as_one() -> None:
    words = words_for()
    assert values(words, "-append") == ["console=ttyS0 a=b"]
    assert values(words, "-kernel") == ["/run/boot/vmlinuz"]


@pytest.mark.parametrize(("form", "rom"), [("kernel", "linuxboot_dma.bin"), ("vmlinux", "pvh.bin")])
def test_a_guest_that_goes_on_has_the_machine_that_it_had(form: KernelForm, rom: str) -> None:
    """QEMU loads a state only where the memory that is no RAM is the same: the ROM is some."""
    boots = words_for(ports=True)
    waits = words_for(RunningKernel(form), ports=True, arrives=True)
    assert values(waits, "-device") == values(boots, "-device")
    assert values(waits, "-machine") == values(boots, "-machine")
    assert values(waits, "-option-rom") == [rom]
    assert "-kernel" not in waits
    assert values(waits, "-incoming") == ["defer"]
    assert "-S" in waits
    assert "-incoming" not in boots
    assert "-S" not in boots


def test_firmware() -> None:
    bios = words_for(FirmwareFiles())
    assert "-kernel" not in bios
    assert "graphics=off" in values(bios, "-machine")[0]
    uefi = words_for(FirmwareFiles(Path("/f/code.fd"), 12))
    assert "pflash0=code,pflash1=variables" in values(uefi, "-machine")[0]
    assert values(uefi, "-add-fd") == ["fd=12,set=1"]
    code, variables, _disk = values(uefi, "-blockdev")
    assert "read-only=on" in code
    assert "filename=/f/code.fd" in code
    assert "filename=/dev/fdset/1" in variables


def test_firmware_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(NeedsPackageError) as caught:
        firmware.find_uefi(tmp_path)
    assert "apt-get install ovmf" in str(caught.value.hint)
    for name in ("OVMF_CODE.fd", "OVMF_VARS.fd"):
        (tmp_path / name).touch()
    assert firmware.find_uefi(tmp_path).code == tmp_path / "OVMF_CODE.fd"
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"):
        (tmp_path / name).touch()
    assert firmware.find_uefi(tmp_path).variables == tmp_path / "OVMF_VARS_4M.fd"


@pytest.mark.parametrize(
    ("registers", "is_at_its_end"),
    [
        ("RIP=ffffffff81a2 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nES =0000", True),
        ("EIP=000f2a3c EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nES =0000", True),
        ("RIP=ffffffff81a2 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nES =0000", False),
        ("RIP=ffffffff81a2 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\nES =0000", False),
        ("", False),
    ],
)
def test_a_processor_that_waits_without_interrupts_is_halted(
    registers: str, is_at_its_end: bool
) -> None:
    assert is_halted(registers) == is_at_its_end
