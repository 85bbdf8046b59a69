"""The command line of QEMU: one machine of a fixed kind, whose devices have fixed places.

The machine's type has a version, the processor a model of its own, and each device its place on the
bus: so a guest finds the same machine under each QEMU from 7.2 on, with KVM and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from p2pcloopd.guest.system.addresses import PC_CARD, PC_DISPLAY_CARD

MACHINE = "pc-q35-7.2"

CPU = "qemu64,+aes,+cx16,+lahf-lm,+pni,+popcnt,+sse4.1,+sse4.2,+ssse3"
"""What each x86-64 processor since 2010 has (x86-64-v2), and TCG, too. Distributions are built for
that or less. With KVM its vendor is the host's."""

MEMORY_FILE = Path("/dev/shm/ram")  # noqa: S108  in the sandbox
"""The guest's memory: a file, since the block server maps it, too."""

Accelerator = Literal["kvm", "tcg"]

_TRANSLATED_MIB = 256
"""Room for the code that TCG makes of the guest's."""

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_DISK_PLACES = ("02", "03")
_CARD_PLACES = {"network": PC_CARD, "display": PC_DISPLAY_CARD}
_PORTS_PLACE, _RANDOM_PLACE = "06", "07"


@dataclass(frozen=True, slots=True)
class PcCard:
    """A network card.

    Attributes:
        role: what it is for.
        kind: of its descriptor: a datagram socket of frames, or a tap.
        fd: the descriptor.
        mac: as text.
        mtu: bytes of its longest IP packet.
    """

    role: Literal["network", "display"]
    kind: Literal["dgram", "tap"]
    fd: int
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel that QEMU loads, with its first root and its command line."""

    kernel: Path
    initramfs: Path
    words: str


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
class Pc:
    """What a machine has.

    Attributes:
        memory: bytes.
        disks: sockets of the disks' servers, of vhost-user-blk with KVM and of NBD with TCG
            (kvm.py tells why); the first is /dev/vda.
        console: the descriptor of the serial line's socket.
        monitor: that of the monitor's.
        ports: whether it has a console device with ports.
    """

    program: Path
    accelerator: Accelerator
    memory: int
    disks: Sequence[Path]
    cards: Sequence[PcCard]
    console: int
    monitor: int
    boots: KernelFiles | FirmwareFiles
    ports: bool = False


def command_line(pc: Pc) -> list[str]:
    """Return the command that runs the machine."""
    accelerator = "kvm" if pc.accelerator == "kvm" else f"tcg,tb-size={_TRANSLATED_MIB}"
    machine, boot = _boot_words(pc.boots)
    size = f"{pc.memory >> 10}k"
    words = [
        *(str(pc.program), "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-sandbox", _SANDBOX),
        *("-machine", f"{MACHINE},memory-backend=ram,vmport=off,usb=off{machine}"),
        *("-accel", accelerator, "-cpu", CPU, "-smp", "1", "-m", size),
        *("-object", f"memory-backend-file,id=ram,size={size},share=on,mem-path={MEMORY_FILE}"),
        # A reboot ends the program; then it is started again.
        "-no-reboot",
        *boot,
        *("-chardev", f"socket,id=monitor,fd={pc.monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=console,fd={pc.console}"),
        *("-device", "isa-serial,chardev=console,index=0"),
    ]  # fmt: skip
    for number, (socket, place) in enumerate(zip(pc.disks, _DISK_PLACES, strict=False)):
        make = _vhost_disk if pc.accelerator == "kvm" else _nbd_disk
        words += make(f"disk{number}", socket, f"addr={place},bootindex={number + 1}")
    for card in pc.cards:
        words += _card_words(card)
    if pc.ports:
        words += ["-device", f"virtio-serial-pci,id=ports,addr={_PORTS_PLACE}"]
    words += ["-object", "rng-builtin,id=random"]
    return [*words, "-device", f"virtio-rng-pci,rng=random,addr={_RANDOM_PLACE}"]


def _boot_words(boots: KernelFiles | FirmwareFiles) -> tuple[str, list[str]]:
    """What the machine's type needs, and the words of their own."""
    if isinstance(boots, KernelFiles):
        kernel = ["-kernel", str(boots.kernel), "-initrd", str(boots.initramfs)]
        return "", [*kernel, "-append", boots.words]
    if boots.uefi is None:
        # SeaBIOS then shows on the serial line what a boot loader writes to the screen.
        return ",graphics=off", []
    code = f"driver=file,node-name=code,read-only=on,filename={boots.uefi}"
    variables = "driver=file,node-name=variables,locking=off,filename=/dev/fdset/1"
    words = ["-add-fd", f"fd={boots.variables},set=1", "-blockdev", code, "-blockdev", variables]
    return ",pflash0=code,pflash1=variables", words


def _vhost_disk(name: str, socket: Path, place: str) -> list[str]:
    device = f"vhost-user-blk-pci,chardev={name},{place}"
    return ["-chardev", f"socket,id={name},path={socket}", "-device", device]


def _nbd_disk(name: str, socket: Path, place: str) -> list[str]:
    # A disk that cannot be written is one for the guest, too. An error of the server is one of the
    # disk: by default QEMU would stop the guest where a disk is full.
    backend = f"driver=nbd,node-name={name},server.type=unix,server.path={socket}"
    device = f"virtio-blk-pci,drive={name},{place},rerror=report,werror=report"
    return ["-blockdev", f"{backend},auto-read-only=on,discard=unmap", "-device", device]


def _card_words(card: PcCard) -> list[str]:
    backend = f"{card.kind},id={card.role}"
    if card.kind == "tap":
        backend += f",fd={card.fd},vhost=off"
    else:
        backend += f",local.type=fd,local.str={card.fd}"
    device = f"virtio-net-pci,netdev={card.role},mac={card.mac},host_mtu={card.mtu}"
    # Without a ROM the firmware does not try to boot from the network.
    return ["-netdev", backend, "-device", f"{device},romfile=,addr={_CARD_PLACES[card.role]}"]
