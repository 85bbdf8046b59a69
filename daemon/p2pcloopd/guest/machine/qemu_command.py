"""The command line of QEMU: one machine of a fixed kind, whose devices have fixed places.

The machine's type has a version, the processor a model of its own, and each device its place on the
bus: so a guest finds the same machine under each QEMU from 7.2 on, with KVM and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from p2pcloopd.guest.system.addresses import PC_CARD, PC_DISPLAY_CARD

MACHINE = "pc-q35-7.2"

PROGRAM, PROGRAM_PACKAGE = "qemu-system-x86_64", "qemu-system-x86"

CPU = "qemu64,+aes,+cx16,+lahf-lm,+pni,+popcnt,+sse4.1,+sse4.2,+ssse3,-svm"
"""What each x86-64 processor since 2010 has (x86-64-v2), and TCG, too. Distributions are built for
that or less. Virtual machines in the guest, which only some processors of one vendor could run, are
left out."""

NEEDED_FLAGS = frozenset({"aes", "cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"})
"""Of a processor that runs such guests by KVM, as Linux calls them."""

KernelForm = Literal["kernel", "vmlinux"]
"""Of a kernel that QEMU was given: a bzImage, or the program in one."""

KERNEL_ROMS: Mapping[KernelForm, str] = {"kernel": "linuxboot_dma.bin", "vmlinux": "pvh.bin"}
"""By which QEMU boots a kernel that it was given."""

Accelerator = Literal["kvm", "tcg"]
CardRole = Literal["network", "display"]

_RECONNECT_SECONDS = 3600
"""How long a disk waits for a block server that was ended and is started again. If it is not, the
guest's process ends the guest long before that."""

_TRANSLATED_MIB = 256
"""Room for the code that TCG makes of the guest's."""

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_DISK_PLACES = ("02", "03")
CARD_PLACES: dict[CardRole, str] = {"network": PC_CARD, "display": PC_DISPLAY_CARD}
_PORTS_PLACE, _RANDOM_PLACE = "06", "07"


@dataclass(frozen=True, slots=True)
class PcCard:
    """A network card.

    Attributes:
        role: what it is for.
        kind: of its descriptor: a datagram socket of frames, or a tap; "none" where the card
            leads nowhere.
        fd: the descriptor; -1 for none.
        mac: as text.
        mtu: bytes of its longest IP packet.
    """

    role: CardRole
    kind: Literal["dgram", "tap", "none"]
    fd: int
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel that QEMU loads, with its first root and its command line."""

    kernel: Path
    initramfs: Path
    words: str
    form: KernelForm = "kernel"


@dataclass(frozen=True, slots=True)
class FirmwareFiles:
    """Firmware that boots the disk.

    Attributes:
        uefi: the code of UEFI; None for a BIOS.
        variables: with UEFI, the descriptor of the file with its variables.
    """

    uefi: Path | None = None
    variables: int = -1


@dataclass(frozen=True, slots=True)
class RunningKernel:
    """Of a guest that is resumed: it was booted by `KernelFiles`, whose ROM is in its state."""

    form: KernelForm = "kernel"


Boots = KernelFiles | FirmwareFiles | RunningKernel


@dataclass(frozen=True, slots=True)
class Pc:
    """What a machine has.

    Attributes:
        cpu: its processor; see `cpu_words`.
        memory: bytes.
        memory_file: the descriptor of the file that is its memory.
        disks: sockets of the disks' servers, of NBD; the first is /dev/vda.
        console: the descriptor of the serial line's socket.
        monitor: that of the monitor's.
        ports: whether it has a console device with ports.
        arrives: whether it waits, stopped, for the state of a machine that ran before.
    """

    program: Path
    accelerator: Accelerator
    cpu: str
    memory: int
    memory_file: int
    disks: Sequence[Path]
    cards: Sequence[PcCard]
    console: int
    monitor: int
    boots: Boots
    ports: bool = False
    arrives: bool = False

    @property
    def uefi(self) -> Path | None:
        """The code of its UEFI; None with SeaBIOS."""
        return self.boots.uefi if isinstance(self.boots, FirmwareFiles) else None


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the machine.

    Attributes:
        words: as `-device` takes it, without what is of this host: what a guest knows of it. Its
            driver comes first.
        host: words for what it has on this host; "" for nothing.
        backend: arguments before it that make that.
    """

    words: str
    host: str = ""
    backend: Sequence[str] = ()

    def arguments(self) -> list[str]:
        """The device as arguments of QEMU."""
        return [*self.backend, "-device", ",".join(filter(None, (self.words, self.host)))]


def devices(pc: Pc) -> list[Device]:
    """Return the devices of a machine, in a fixed order."""
    found = [Device("isa-serial,index=0", "chardev=console")]
    for number, (socket, place) in enumerate(zip(pc.disks, _DISK_PLACES, strict=False)):
        found.append(_disk(number, place, socket))
    found += [_card(card) for card in pc.cards]
    if pc.ports:
        found.append(Device(f"virtio-serial-pci,id=ports,addr={_PORTS_PLACE}"))
    random = ("-object", "rng-builtin,id=random")
    found.append(Device(f"virtio-rng-pci,addr={_RANDOM_PLACE}", "rng=random", random))
    # It has no place on a bus. Each QEMU draws a number of its own, by which the guest's kernel
    # notices that it is one of several who began alike, and mixes new randomness in.
    return [*found, Device("vmgenid,guid=auto")]


def command_line(pc: Pc) -> list[str]:
    """Return the command that runs the machine."""
    accelerator = "kvm" if pc.accelerator == "kvm" else f"tcg,tb-size={_TRANSLATED_MIB}"
    machine, boot = _boot_words(pc.boots)
    size = f"{pc.memory >> 10}k"
    memory = f"memory-backend-file,id=ram,size={size},share=on,mem-path={memory_path(pc)}"
    words = [
        *(str(pc.program), "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-sandbox", _SANDBOX),
        # Two guests' equal pages are not merged: each could find out what the other one has.
        *("-machine", f"{MACHINE},memory-backend=ram,mem-merge=off,vmport=off,usb=off{machine}"),
        *("-accel", accelerator, "-cpu", pc.cpu, "-smp", "1", "-m", size, "-object", memory),
        # A reboot ends the program; then it is started again.
        "-no-reboot",
        *boot,
        *("-chardev", f"socket,id=monitor,fd={pc.monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=console,fd={pc.console}"),
    ]
    for device in devices(pc):
        words += device.arguments()
    return [*words, "-incoming", "defer", "-S"] if pc.arrives else words


def cpu_words(accelerator: Accelerator, vendor: str) -> str:
    """The processor of a machine, as `-cpu` takes it.

    With KVM, a guest's system calls in 32-bit mode are those of the host's vendor.

    Args:
        vendor: of the host's processor.
    """
    return f"{CPU},vendor={vendor}" if accelerator == "kvm" else CPU


def memory_path(pc: Pc) -> str:
    """The path by which QEMU opens the file of its memory, which it inherits."""
    return f"/proc/self/fd/{pc.memory_file}"


def _boot_words(boots: Boots) -> tuple[str, list[str]]:
    """What the machine's type needs, and the words of their own."""
    match boots:
        case KernelFiles():
            kernel = ["-kernel", str(boots.kernel), "-initrd", str(boots.initramfs)]
            return "", [*kernel, "-append", boots.words]
        case RunningKernel():
            return "", ["-option-rom", KERNEL_ROMS[boots.form]]
        case FirmwareFiles(uefi=None):
            # SeaBIOS then shows on the serial line what a boot loader writes to the screen.
            return ",graphics=off", []
    code = f"driver=file,node-name=code,read-only=on,filename={boots.uefi}"
    variables = "driver=file,node-name=variables,locking=off,filename=/dev/fdset/1"
    words = ["-add-fd", f"fd={boots.variables},set=1", "-blockdev", code, "-blockdev", variables]
    return ",pflash0=code,pflash1=variables", words


def _disk(number: int, place: str, socket: Path) -> Device:
    # A disk that cannot be written is one for the guest, too. An error of the server is one of the
    # disk: by default QEMU would stop the guest where a disk is full.
    name = f"disk{number}"
    backend = f"driver=nbd,node-name={name},server.type=unix,server.path={socket}"
    backend += f",reconnect-delay={_RECONNECT_SECONDS},auto-read-only=on,discard=unmap"
    words = f"virtio-blk-pci,addr={place},bootindex={number + 1},rerror=report,werror=report"
    return Device(words, f"drive={name}", ("-blockdev", backend))


def _card(card: PcCard) -> Device:
    # Without a ROM the firmware does not try to boot from the network.
    words = f"virtio-net-pci,addr={CARD_PLACES[card.role]},mac={card.mac},host_mtu={card.mtu}"
    words += ",romfile="
    match card.kind:
        case "none":
            return Device(words)
        case "tap":
            backend = f"tap,id={card.role},fd={card.fd},vhost=off"
        case "dgram":
            backend = f"dgram,id={card.role},local.type=fd,local.str={card.fd}"
    return Device(words, f"netdev={card.role}", ("-netdev", backend))
