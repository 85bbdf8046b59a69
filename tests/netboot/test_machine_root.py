"""The first root of a bare machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import zstandard

from p2pcloopd.guest.system.kernel import Kernel, find_busybox
from p2pcloopd.guest.system.scripts import resource
from p2pcloopd.netboot.machine_root import build_machine_root, compress, drivers_table

ALIASES = """\
# Aliases extracted from modules themselves.
alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias virtio:d00000001v* virtio_net
alias pci:v*d*sv*sd*bc0Csc03i30* xhci_pci
alias usb:v0BDAp8152d*dc*dsc*dp*ic*isc*ip*in* r8152
alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169
alias vmbus:635161f83edfc546913ff2d2f965ed0e hv_netvsc
alias fs-ext4 ext4
""".splitlines()

DRIVERS = ["e1000", "virtio_pci", "virtio_net", "xhci_pci", "r8152", "hv_netvsc", "usbhid"]


def test_the_table_lists_what_is_carried_and_nothing_else() -> None:
    assert drivers_table(ALIASES, DRIVERS).splitlines() == [
        "pci:v00008086d0000100E e1000",
        "pci:v00001AF4 virtio_pci",
        "virtio:d00000001 virtio_net",
        "bc0Csc03i30 xhci_pci",
        "usb:v0BDAp8152 r8152",
        "vmbus:635161f83edfc546913ff2d2f965ed0e hv_netvsc",
        "bc0Csc03i30 usbhid",
    ]


def test_devices_find_their_drivers(tmp_path: Path) -> None:
    (tmp_path / "drivers").write_text(drivers_table(ALIASES, DRIVERS))
    program = resource("drivers.awk").replace("/modules/drivers", str(tmp_path / "drivers"))
    devices = [
        "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
        "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00",
        "virtio:d00000001v00001AF4",
        "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30",
        "usb:v0BDAp8152d3000dc00dsc00dp00icFFiscFFip00in00",
        "pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00",
    ]
    done = subprocess.run(
        [find_busybox(), "awk", program],
        input="\n".join(devices),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        *("e1000", "virtio_pci", "virtio_net", "xhci_pci", "usbhid", "r8152"),
    ]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel that has few of the drivers."""
    modules = tmp_path / "lib/modules/6.1.0"
    modules.mkdir(parents=True)
    names = ["nbd", "overlay", "loop", "virtio_net", "virtio_pci", "crc32c_generic"]
    for name in names:
        (modules / f"{name}.ko").write_bytes(name.encode() * 8)
    (modules / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in names))
    (modules / "modules.alias").write_text("\n".join(ALIASES))
    return Kernel(tmp_path / "vmlinuz", "6.1.0", modules, kind="pc")


def test_a_first_root_has_the_drivers_that_the_kernel_has(kernel: Kernel) -> None:
    packed = build_machine_root(kernel, ("0",))
    archive = zstandard.ZstdDecompressor().decompress(packed, max_output_size=64 << 20)
    names = (
        subprocess.run(
            [find_busybox(), "cpio", "-t"], input=archive, capture_output=True, check=True
        )
        .stdout.decode()
        .split()
    )
    assert {"modules/nbd.ko", "modules/virtio_net.ko", "bin/nbd_root", "modules/drivers"} <= {
        *names
    }
    assert "modules/r8169.ko" not in names
    assert b"virtio:d00000001 virtio_net\n" in archive
    assert b"DISK=/dev/nbd0\n" in archive
    steps = (
        "STEPS='disks programs name-server machine node-network node-disk layers join memory-root"
    )
    assert steps.encode() in archive


def test_a_kernel_without_zstd_gets_gzip(kernel: Kernel) -> None:
    options = frozenset({"RD_GZIP"})
    older = Kernel(kernel.path, kernel.release, kernel.modules, options, kind="pc")
    assert compress(older, b"archive").startswith(b"\x1f\x8b")
