"""The first root of a bare machine: drivers, an address, the node's disk, the image's root on it.

It is the one of a guest (guest/system/initramfs.py) with other steps. A kernel of Debian's has its
drivers as modules. Those of network cards, of the buses where these are, and of keyboards are
taken; the machine's own devices say which of them are inserted (resources/machine.sh).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import zstandard

from p2pcloop.words import tr
from p2pcloopd.guest.system.files_root import LAYERS, WHOLE
from p2pcloopd.guest.system.initramfs import DISK_ROOT, START_MARK, Part, make_initramfs
from p2pcloopd.guest.system.kernel import Kernel, has_module
from p2pcloopd.guest.system.preload import compiled_program
from p2pcloopd.guest.system.scripts import resource

DISK = "/dev/nbd0"

READ_AHEAD_KB = 64
"""KiB that the machine reads ahead on its disk: four times those of a guest, which is nearer to its
block server."""

CARDS = (
    # of virtual machines
    *(
        "virtio_net",
        "vmxnet3",
        "hv_netvsc",
        "xen_netfront",
        "e1000",
        "pcnet32",
        "8139cp",
        "8139too",
    ),
    # Intel
    *("e1000e", "igb", "igc", "ixgbe", "i40e", "e100"),
    # Realtek, Broadcom, Marvell, Qualcomm, Aquantia and others
    *("r8169", "tg3", "sky2", "skge", "alx", "atl1c", "atl1e", "atl1", "atlantic", "forcedeth"),
    *("jme", "via_rhine", "via_velocity", "sis900", "sis190", "ne2k_pci", "natsemi", "tulip"),
    *("dmfe", "3c59x", "amd_xgbe"),
    # by USB
    *("r8152", "ax88179_178a", "asix", "cdc_ether", "cdc_ncm", "smsc95xx", "lan78xx"),
)
"""Drivers of network cards by which a machine can start."""

OTHERS = (
    *("virtio_pci", "xhci_pci", "ehci_pci", "uhci_hcd", "ohci_pci"),
    *("usbhid", "hid_generic"),
)
"""Drivers of buses, and of what a user needs for a login: the keyboard."""

KEYBOARDS = ("i8042", "atkbd")
"""Drivers of what is not found on a bus."""

WITHOUT_DEVICE = ("hid_generic", "usbhid")
"""Inserted where the machine has USB at all: a keyboard may be plugged in later."""

_USB = ("xhci_pci", "ehci_pci", "uhci_hcd", "ohci_pci")

_KEYS = (
    # vendor and device; all devices of a vendor; a class of devices
    re.compile(r"(pci:v[0-9A-F]{8}d[0-9A-F]{8})"),
    re.compile(r"(pci:v[0-9A-F]{8})d\*"),
    re.compile(r"pci:v\*d\*sv\*sd\*(bc[0-9A-F]{2}sc[0-9A-F]{2}i[0-9A-F]{2})"),
    re.compile(r"(virtio:d[0-9A-F]{8})v\*"),
    re.compile(r"(usb:v[0-9A-F]{4}p[0-9A-F]{4})"),
    re.compile(r"(vmbus:[0-9a-f]+)$"),
    re.compile(r"(xen:\S+)$"),
)
"""How the pattern of an alias begins, and by which part of it drivers.awk finds the driver."""

NODE_DISK = Part(
    steps=("node-disk",),
    modules=("nbd",),
    settings={"DISK": DISK, "READ_AHEAD_KB": str(READ_AHEAD_KB)},
)
"""The disk of the node, at /dev/nbd0."""

_MEMORY = Part(steps=("memory-root",))
"""The root whose changes are in the machine's memory."""

_HAND_OVER = Part(
    steps=("machine-hand-over",),
    applets=("awk", "grep", "ls", "readlink", "switch_root", "true", "uname"),
    settings={"START_MARK": START_MARK},
)

_COMPRESSION_LEVEL = 9
"""Of zstd: 19 makes it a little smaller, and takes as long as a machine's boot."""


def build_machine_root(
    kernel: Kernel,
    places: Sequence[str] = WHOLE,
    *,
    file_system: str | None = None,
    keeps: bool = False,
    disk: Part = NODE_DISK,
    drivers: Sequence[str] = (),
    cache: Path | None = None,
) -> bytes:
    """Return the compressed archive with which a bare machine starts.

    Args:
        kernel: the kernel that it is for.
        places: of the image's file systems on the disk, as for `build_files_initramfs`.
        file_system: the type of the only one there; None where that is not known, or several are.
        keeps: the disk can be written, and the node keeps what is; else changes are in memory.
        disk: what connects the disk.
        drivers: modules that are inserted before all else.
        cache: as for `compiled_program`.

    Raises:
        NeedsPackageError: busybox, a C compiler or a module is not on this system.
    """
    client = compiled_program(
        "nbd_root", tr("a machine's disk needs a small program in its first root"), cache=cache
    )
    own = Part((), files=(("bin/nbd_root", client.read_bytes()),))
    root = _root_on_disk() if keeps else _root_in_memory(places)
    if file_system is not None:
        root = tuple(_without_other_types(part, file_system) for part in root)
    archive = make_initramfs(
        kernel,
        *(_FUNCTIONS, _machine(kernel), _NETWORK, own, disk, *root, _HAND_OVER),
        drivers=drivers,
    )
    return compress(kernel, archive)


_FUNCTIONS = Part(steps=("programs", "name-server"))

_NETWORK = Part(
    steps=("node-network",),
    scripts=("lease",),
    applets=("chmod", "ip", "udhcpc"),
    settings={"ADDRESS": "", "GATEWAY": "", "NAMESERVER": ""},
)


def _root_in_memory(places: Sequence[str]) -> tuple[Part, ...]:
    return LAYERS, Part((), settings={"PLACES": " ".join(places)}), _MEMORY


def _without_other_types(part: Part, file_system: str) -> Part:
    """Leave out the drivers of other file systems: half of all that a machine gets."""
    module = {"iso9660": "isofs", "ext2": "ext4", "ext3": "ext4"}.get(file_system, file_system)
    others = {"ext4", "btrfs", "xfs", "squashfs", "isofs", "erofs"} - {module}
    return replace(part, optional=tuple(name for name in part.optional if name not in others))


def _root_on_disk() -> tuple[Part, ...]:
    return (DISK_ROOT,)


def _machine(kernel: Kernel) -> Part:
    """The step that inserts drivers, with all of them that the kernel has, and the table of
    devices."""
    assert kernel.modules is not None, "find_stock_kernel sees to it"
    there = [name for name in (*CARDS, *OTHERS) if has_module(kernel, name)]
    alias = (kernel.modules / "modules.alias").read_text()
    return Part(
        steps=("machine",),
        applets=("awk", "reboot", "uname"),
        optional=(*there, *KEYBOARDS),
        settings={"KEYBOARDS": " ".join(KEYBOARDS)},
        files=(
            ("modules/drivers", drivers_table(alias.splitlines(), there).encode()),
            ("lib/drivers.awk", resource("drivers.awk").encode()),
        ),
    )


def drivers_table(aliases: Iterable[str], drivers: Sequence[str]) -> str:
    """Return lines `KEY DRIVER` for drivers.awk.

    Args:
        aliases: lines of modules.alias (depmod(8)).
        drivers: of which it is to be.
    """
    wanted = set(drivers)
    found: dict[tuple[str, str], None] = {}
    for line in aliases:
        match line.split():
            case ["alias", pattern, module] if (name := module.replace("-", "_")) in wanted:
                for key in _KEYS:
                    if begin := key.match(pattern):
                        found[begin[1], name] = None
                        break
            case _:
                continue
    keyboards = [name for name in WITHOUT_DEVICE if name in wanted]
    for place, name in tuple(found):
        if name in _USB:
            found |= dict.fromkeys((place, keyboard) for keyboard in keyboards)
    return "".join(f"{place} {name}\n" for place, name in found)


def compress(kernel: Kernel, archive: bytes) -> bytes:
    """Compress an archive as the kernel can unpack it: a machine gets it over the network."""
    if not kernel.options or "RD_ZSTD" in kernel.options:
        return zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL).compress(archive)
    packer = zlib.compressobj(level=9, wbits=31)
    return packer.compress(archive) + packer.flush()
