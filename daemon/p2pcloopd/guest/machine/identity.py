"""What a machine is to its guest, and whether this host has the same one.

A guest goes on only in a machine that is what it was: QEMU loads a state without a word into one
whose processor is another, and the guest breaks later. So a state names its machine
(p2pcloop.formats.machine_state), and that is compared before anything is fetched or started.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from p2pcloop.errors import MismatchError, NeedsPackageError
from p2pcloop.formats.machine_state import MachineState, Network
from p2pcloop.frozen import dataclass
from p2pcloop.text import printable
from p2pcloop.units import format_size
from p2pcloop.words import joined, tr
from p2pcloopd.guest.machine import kvm
from p2pcloopd.guest.machine.firmware import BIOS_FILE, find_uefi
from p2pcloopd.guest.machine.qemu_command import (
    CARD_PLACES,
    KERNEL_ROMS,
    MACHINE,
    NEEDED_FLAGS,
    PROGRAM,
    PROGRAM_PACKAGE,
    Accelerator,
    Boots,
    FirmwareFiles,
    KernelForm,
    Pc,
    PcCard,
    RunningKernel,
    cpu_words,
    devices,
)
from p2pcloopd.guest.spec import machine_memory
from p2pcloopd.programs import find_program

PORT = "virtserialport"

_KERNEL_ROMS: Mapping[KernelForm, str] = {
    form: f"option-rom={rom}" for form, rom in KERNEL_ROMS.items()
}
"""No devices, but a guest that a kernel of its host booted has one of them in its memory."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_SECONDS = 20.0
_NOT_ASKED = tr("it was not asked for")

PortPlace = tuple[int, str]
"""A port's number, and its name or ""."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a machine has, besides what all have.

    Attributes:
        accelerator: what ran it.
        memory: bytes.
        disks: how many.
        cards: network cards, which lead nowhere.
        ports: of the console device, in the order of their numbers; None if it has no such device.
        boot: what booted it: a kernel of its host, in one of its forms, or firmware.
    """

    accelerator: Accelerator
    memory: int
    disks: int
    cards: tuple[PcCard, ...]
    ports: tuple[PortPlace, ...] | None
    boot: Literal["kernel", "vmlinux", "bios", "uefi"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Why this host does not have a machine.

    Attributes:
        what: a clause that says what differs.
        help: what would help.
    """

    what: str
    help: str


@dataclass(frozen=True, slots=True)
class Host:
    """What this host has.

    Attributes:
        qemu: the version of QEMU, as it says it.
        bios, uefi: SHA-256 of its firmware; b"" if it is not installed.
        why_no_kvm: why KVM runs no guest; "" if it does.
        vendor, flags: of its processor.
        memory: bytes.
    """

    qemu: str
    bios: bytes
    uefi: bytes
    why_no_kvm: str
    vendor: str
    flags: frozenset[str]
    memory: int

    def cpu(self, accelerator: Accelerator) -> str:
        """The processor of its guests."""
        return cpu_words(accelerator, self.vendor)


@cache
def this_host(accelerator: Accelerator) -> Host:
    """Return what this host has; the answer is kept.

    Args:
        accelerator: that is of interest: whether KVM runs a guest is found out for that alone, and
            takes up to 0.7 s.

    Raises:
        NeedsPackageError: QEMU is not installed.
    """
    try:
        uefi = _digest(find_uefi().code)
    except NeedsPackageError:
        uefi = b""
    vendor, flags = processor()
    return Host(
        qemu=_qemu_version(),
        bios=_digest(BIOS_FILE),
        uefi=uefi,
        why_no_kvm=kvm.probe_kvm().why_not if accelerator == "kvm" else _NOT_ASKED,
        vendor=vendor,
        flags=flags,
        memory=machine_memory(),
    )


@cache
def processor(table: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """The vendor and the flags of this host's processor."""
    text = table.read_text()
    vendor = re.search(r"^vendor_id\s*:\s*(\w+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return vendor[1] if vendor else "", frozenset(flags[1].split() if flags else ())


def describe_machine(
    pc: Pc,
    ports: Sequence[PortPlace],
    host: Host,
    device_state: bytes,
    *,
    disk_length: int,
    suspended: int,
    network: Network = "none",
    host_name: str = "",
) -> MachineState:
    """Return what a state says of its machine.

    Args:
        pc: the machine.
        ports: those that its guest has.
        disk_length: exact bytes of its first disk.
        suspended: when it was stopped: seconds since 1970.
        network: what its network card leads to.
        host_name: the guest's.
    """
    firmware = ("uefi", host.uefi) if pc.uefi is not None else ("bios", host.bios)
    return MachineState(
        disk_length=disk_length,
        memory_length=pc.memory,
        device_state_length=len(device_state),
        type=MACHINE,
        cpu=host.cpu(pc.accelerator),
        accelerator=pc.accelerator,
        qemu=host.qemu,
        suspended=suspended,
        devices=_device_words(pc, ports),
        firmware=(firmware,),
        network=network,
        host_name=host_name,
    )


def shape_of(machine: MachineState) -> Shape:
    """Return what a state's machine has. Nothing of the state's words gets into a command line:
    they are those that this program would write itself, or the machine is none of its.

    Raises:
        MismatchError: it is none that this program makes.
    """
    drivers = [words.partition(",")[0] for words in machine.devices]
    ports = None
    if "virtio-serial-pci" in drivers:
        ports = tuple(_port_of(words) for words in machine.devices if words.startswith(f"{PORT},"))
    by_kernel = next((form for form, rom in _KERNEL_ROMS.items() if rom in machine.devices), None)
    roles = dict(machine.firmware)
    shape = Shape(
        machine.accelerator,
        machine.memory_length,
        drivers.count("virtio-blk-pci"),
        tuple(_card_of(words) for words in machine.devices if words.startswith("virtio-net-pci,")),
        ports,
        by_kernel or ("uefi" if "uefi" in roles else "bios"),
    )
    if machine.type != MACHINE or _device_words(_pc_of(shape), ports or ()) != machine.devices:
        raise MismatchError(
            tr("the guest's machine ({type}) is none that this p2pcloop makes", type=machine.type),
            hint="the p2pcloop that suspended it, or a newer one, resumes it",
        )
    return shape


def _too_much_memory(needed: int, here: int) -> str:
    return tr(
        "it has {needed} of memory, and this machine has {here}",
        needed=format_size(needed),
        here=format_size(here),
    )


def differences(machine: MachineState, host: Host) -> list[Difference]:
    """Compare a state's machine with what this host has.

    Raises:
        MismatchError: it is none that this program makes.
    """
    shape = shape_of(machine)
    found = []
    if machine.accelerator == "kvm":
        found += _kvm_differences(host)
    if not found and machine.cpu != (here := host.cpu(machine.accelerator)):
        found.append(
            Difference(
                tr(
                    "its processor was `{there}`, and would be `{here}` here",
                    there=machine.cpu,
                    here=here,
                ),
                tr("resume it on a host whose processor has the same vendor")
                if machine.accelerator == "kvm"
                else tr("the version of p2pcloop that suspended it resumes it"),
            )
        )
    if _version(host.qemu) < _version(machine.qemu):
        found.append(
            Difference(
                tr(
                    "QEMU {newer} suspended it, and this host has the older {older}",
                    newer=_short(machine.qemu),
                    older=_short(host.qemu),
                ),
                tr("install a newer {program_package}", program_package=PROGRAM_PACKAGE),
            )
        )
    found += _firmware_differences(machine, shape, host)
    if machine.memory_length > host.memory:
        found.append(
            Difference(
                _too_much_memory(machine.memory_length, host.memory),
                tr("resume it on a machine with more memory"),
            )
        )
    return found


def check_host(machine: MachineState, host: Host) -> None:
    """Refuse a state that cannot go on here.

    Raises:
        MismatchError: this host has another machine; the message says what differs, and the hint
            what would help.
    """
    found = differences(machine, host)
    if found:
        raise MismatchError(
            tr("the guest cannot go on here: {why}", why=joined("; ", (it.what for it in found))),
            hint=joined("; ", dict.fromkeys(each.help for each in found)),
        )


def _kvm_differences(host: Host) -> list[Difference]:
    if host.why_no_kvm:
        return [
            Difference(
                tr("KVM ran it, and here KVM does not: {why_no_kvm}", why_no_kvm=host.why_no_kvm),
                tr("resume it on a host with KVM; a guest that ran without KVM goes on everywhere"),
            )
        ]
    if lacking := sorted(NEEDED_FLAGS - host.flags):
        return [
            Difference(
                tr("this processor lacks {lacking}", lacking=", ".join(lacking)),
                tr("resume it on a newer processor"),
            )
        ]
    return []


def _firmware_differences(machine: MachineState, shape: Shape, host: Host) -> list[Difference]:
    role: Literal["bios", "uefi"] = "uefi" if shape.boot == "uefi" else "bios"
    name, package, ours = {
        "bios": ("SeaBIOS", "seabios", host.bios),
        "uefi": ("OVMF", "ovmf", host.uefi),
    }[role]
    if dict(machine.firmware).get(role) == ours:
        return []
    return [
        Difference(
            tr("its firmware, {name}, is another one", name=name)
            if ours
            else tr("{name} is not installed", name=name),
            tr("install the {package} that the other host has", package=package),
        )
    ]


def _device_words(pc: Pc, ports: Sequence[PortPlace]) -> tuple[str, ...]:
    words = [device.words for device in devices(pc)]
    for number, name in sorted(ports):
        words.append(f"{PORT},nr={number}" + (f",name={name}" if name else ""))
    if not isinstance(pc.boots, FirmwareFiles):
        words.append(_KERNEL_ROMS[pc.boots.form])
    return tuple(words)


def _pc_of(shape: Shape) -> Pc:
    """A machine of this shape, without anything of this host."""
    boots: Boots = FirmwareFiles()
    if shape.boot == "kernel" or shape.boot == "vmlinux":
        boots = RunningKernel(shape.boot)
    disks = (Path("/"),) * shape.disks
    ports = shape.ports is not None
    return Pc(
        Path("/"), shape.accelerator, "", shape.memory, -1, disks, shape.cards, -1, -1, boots, ports
    )


def _card_of(words: str) -> PcCard:
    """A network card by its words; of words that are none of ours, a card that has others."""
    told = dict(field.partition("=")[::2] for field in words.split(","))
    roles = {place: role for role, place in CARD_PLACES.items()}
    mac, mtu = told.get("mac", ""), told.get("host_mtu", "")
    return PcCard(
        roles.get(told.get("addr", ""), "network"),
        "none",
        -1,
        mac if _MAC.fullmatch(mac) else "",
        int(mtu) if mtu.isascii() and mtu.isdigit() and len(mtu) < 6 else 0,
    )


def _port_of(words: str) -> PortPlace:
    told = dict(field.partition("=")[::2] for field in words.split(","))
    number = told.get("nr", "")
    valid = number.isascii() and number.isdigit() and len(number) < 3
    return int(number) if valid else 0, told.get("name", "")


def _qemu_version() -> str:
    program = find_program(PROGRAM, PROGRAM_PACKAGE)
    told = subprocess.run(
        [program, "--version"], capture_output=True, timeout=_SECONDS, check=False, text=True
    )
    lines = told.stdout.splitlines() or [""]
    return printable(lines[0].removeprefix("QEMU emulator version "))[:100]


def _version(text: str) -> tuple[int, int]:
    found = _VERSION.match(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _short(version: str) -> str:
    return version.split(" ", maxsplit=1)[0]


@cache
def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except FileNotFoundError:
        return b""
