"""Whole disks that boot on a PC: a partition table, boot loaders for BIOS and UEFI, and a root.

They are what a vendor's image for virtual machines is, but small: syslinux and systemd-boot on one
FAT, Debian's kernel with an initramfs of its own, and the tiny image's files on ext4.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats import newc
from p2pcloopd.guest.system.kernel import Kernel, find_busybox, load_modules
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from tests.support.programs import tool
from tools.get_stock_kernel import main as get_stock_kernel
from tools.tiny_image import fill_root

MIB = 1 << 20
SECTOR = 512
FAT_AT, FAT_SIZE = MIB, 64 * MIB
ROOT_AT, ROOT_SIZE = FAT_AT + FAT_SIZE, 32 * MIB
SIZE = ROOT_AT + ROOT_SIZE + MIB

_PARTITIONS = f"""\
label: gpt
start={FAT_AT // SECTOR}, size={FAT_SIZE // SECTOR}, type=uefi, attrs=LegacyBIOSBootable
start={ROOT_AT // SECTOR}, size={ROOT_SIZE // SECTOR}, type=linux
"""
_WORDS = "console=ttyS0 quiet panic=1 cryptomgr.notests no_timer_check"
_SYSLINUX = f"""\
SERIAL 0 115200
DEFAULT linux
LABEL linux
    LINUX /vmlinuz
    INITRD /initrd
    APPEND {_WORDS} by=bios
"""
_ENTRY = f"title tiny\nlinux /vmlinuz\ninitrd /initrd\noptions {_WORDS} by=uefi\n"
_INIT = """\
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
for module in $(cat /order); do insmod "/modules/$module.ko"; done
until [ -b /dev/vda2 ]; do sleep 0.1; done
mount -t ext4 /dev/vda2 /root
mount --move /dev /root/dev
umount /proc
exec switch_root /root /sbin/init
"""
_APPLETS = ("sh", "cat", "insmod", "mount", "umount", "sleep", "switch_root")
_SYSTEMD_BOOT = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
_BIOS_CODE = Path("/usr/lib/syslinux/mbr/gptmbr.bin")


def stock_kernel() -> Kernel:
    """A kernel for QEMU; fetched where this machine has none."""
    try:
        return find_stock_kernel()
    except P2pcloopError:
        assert get_stock_kernel([]) == 0, "see what it said"
        return find_stock_kernel()


def make_boot_disk(path: Path, *, bios: bool = True) -> None:
    """Write a disk that boots by UEFI, and by a BIOS if it may, to `path`: a raw file."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fat, root = work / "fat", work / "root"
        _make_fat(fat, work, stock_kernel())
        _make_root(root, work)
        with path.open("wb") as disk:
            disk.truncate(SIZE)
        table = work / "table"
        table.write_text(_PARTITIONS)
        tool("sh", "-c", 'sfdisk -q "$1" <"$2"', "sh", path, table)
        with path.open("r+b") as disk:
            for at, part in ((FAT_AT, fat), (ROOT_AT, root)):
                disk.seek(at)
                disk.write(part.read_bytes())
            if bios:
                disk.seek(0)
                disk.write(_BIOS_CODE.read_bytes())


def _make_fat(fat: Path, work: Path, kernel: Kernel) -> None:
    with fat.open("wb") as file:
        file.truncate(FAT_SIZE)
    tool("mkfs.vfat", "-F", "16", "-h", str(FAT_AT // SECTOR), fat)
    (work / "initrd").write_bytes(_initramfs(kernel))
    texts = {"syslinux.cfg": _SYSLINUX, "loader.conf": "default tiny.conf\n", "tiny.conf": _ENTRY}
    for name, text in texts.items():
        (work / name).write_text(text)
    tool(
        "mmd", "-i", fat, *(f"::{name}" for name in ("EFI", "EFI/BOOT", "loader", "loader/entries"))
    )
    places = {
        kernel.path: "vmlinuz",
        work / "initrd": "initrd",
        work / "syslinux.cfg": "syslinux.cfg",
        work / "loader.conf": "loader/loader.conf",
        work / "tiny.conf": "loader/entries/tiny.conf",
        _SYSTEMD_BOOT: "EFI/BOOT/BOOTX64.EFI",
    }
    for source, place in places.items():
        tool("mcopy", "-i", fat, source, f"::{place}")
    tool("syslinux", "--install", fat)


def _initramfs(kernel: Kernel) -> bytes:
    modules = load_modules(kernel, ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"])
    return newc.build_archive(
        [
            *map(newc.directory, ("bin", "dev", "modules", "proc", "root")),
            newc.char_device("dev/console", 5, 1),
            newc.regular_file("bin/busybox", find_busybox().read_bytes(), 0o755),
            *(newc.symlink(f"bin/{applet}", "busybox") for applet in _APPLETS),
            *(newc.regular_file(f"modules/{name}.ko", data) for name, data in modules),
            newc.regular_file("order", " ".join(name for name, _ in modules).encode() + b"\n"),
            newc.regular_file("init", _INIT.encode(), 0o755),
        ]
    )


def _make_root(root: Path, work: Path) -> None:
    files = work / "files"
    fill_root(files)
    inittab = files / "etc/inittab"
    inittab.write_text(inittab.read_text().replace("tty0", "ttyS0"))
    with root.open("wb") as file:
        file.truncate(ROOT_SIZE)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", files, root)
