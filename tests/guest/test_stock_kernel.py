"""Finding a kernel for QEMU, and saying what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pcloop.errors import NeedsPackageError, NotHereError
from p2pcloopd.guest.system import stock_kernel
from p2pcloopd.guest.system.initramfs import build_initramfs, network_part
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, Kernel, load_modules
from p2pcloopd.guest.system.kernel_words import kernel_words
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel, kernel_release

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")


def bz_image(release: str) -> bytes:
    """The start of a bzImage that calls itself so."""
    text = f"{release} (debian-kernel@lists.debian.org) #1 SMP\0".encode()
    head = bytearray(4096)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x600).to_bytes(2, "little")
    head[0x800 : 0x800 + len(text)] = text
    return bytes(head)


def install(root: Path, release: str, modules: tuple[str, ...] | None = MODULES) -> Path:
    """A kernel and its modules, as a package of Debian has them."""
    kernel = root / "boot" / f"vmlinuz-{release}"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_bytes(bz_image(release))
    if modules is not None:
        folder = root / "lib/modules" / release
        folder.mkdir(parents=True)
        (folder / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in modules))
        for name in modules:
            (folder / f"{name}.ko").write_bytes(name.encode())
    return kernel


@pytest.fixture(autouse=True)
def no_other_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("P2PCLOOP_STOCK_KERNEL", raising=False)


def test_the_release_is_read_from_the_kernel() -> None:
    assert kernel_release(bz_image("6.1.0-57-cloud-amd64")) == "6.1.0-57-cloud-amd64"
    assert kernel_release(bz_image("6.12.5+deb13-amd64")) == "6.12.5+deb13-amd64"
    assert kernel_release(bz_image("../../etc")) is None
    assert kernel_release(b"\x7fELF" + bytes(4096)) is None
    assert kernel_release(bz_image("6.1.0")[:600]) is None
    assert kernel_release(b"") is None


def test_a_kernel_and_its_modules(tmp_path: Path) -> None:
    path = install(tmp_path, "6.1.0-1-amd64")
    path.with_name("config-6.1.0-1-amd64").write_text("CONFIG_SMP=y\nCONFIG_EXT4_FS=m\n")
    found = find_stock_kernel(path)
    assert (found.path, found.release, found.kind) == (path, "6.1.0-1-amd64", "pc")
    assert found.options == {"SMP"}
    assert load_modules(found, ["virtio_blk"]) == [("virtio_blk", b"virtio_blk")]
    with pytest.raises(NeedsPackageError, match="btrfs") as caught:
        load_modules(found, ["btrfs"])
    assert "get-stock-kernel" in str(caught.value.hint)


def test_the_order_in_which_kernels_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system"
    with pytest.raises(NeedsPackageError, match="no kernel") as caught:
        find_stock_kernel(boot=system / "boot")
    assert "linux-image-amd64" in str(caught.value.hint)
    install(system, "6.1.0-9-amd64")
    newest = install(system, "6.1.0-10-amd64")
    install(system, "6.1.0-11-amd64", modules=None)  # its modules were removed
    assert find_stock_kernel(boot=system / "boot").path == newest
    running = install(system, os.uname().release)
    assert find_stock_kernel(boot=system / "boot").path == running
    unpacked = install(stock_kernel.unpacked_stock_kernel().parent / "one", "6.1.0-2-amd64")
    stock_kernel.unpacked_stock_kernel().symlink_to(unpacked)
    assert find_stock_kernel(boot=system / "boot").path == unpacked
    assert find_stock_kernel(SYSTEM_KERNEL, boot=system / "boot").path == running
    chosen = install(tmp_path / "chosen", "6.1.0-3-amd64")
    monkeypatch.setenv("P2PCLOOP_STOCK_KERNEL", str(chosen))
    assert find_stock_kernel(boot=system / "boot").path == chosen
    assert find_stock_kernel(newest, boot=system / "boot").path == newest


def test_what_is_no_kernel_for_qemu(tmp_path: Path) -> None:
    with pytest.raises(NotHereError):
        find_stock_kernel(tmp_path / "nothing")
    uml = tmp_path / "linux.uml"
    uml.write_bytes(b"\x7fELF" + bytes(4096))
    with pytest.raises(NeedsPackageError, match="bzImage") as caught:
        find_stock_kernel(uml)
    assert "--vm uml" in str(caught.value.hint)
    with pytest.raises(NeedsPackageError, match="modules") as caught:
        find_stock_kernel(install(tmp_path, "6.1.0-1-amd64", modules=None))
    assert "lib/modules/6.1.0-1-amd64" in str(caught.value.hint)


def files_of(archive: bytes) -> dict[str, bytes]:
    """Name and content of what is in an initramfs (newc.py makes it)."""
    found: dict[str, bytes] = {}
    at = 0
    while True:
        size, length = (int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in (6, 11))
        name = archive[at + 110 : at + 110 + length - 1].decode()
        data = at + (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = archive[data : data + size]
        at = data + (size + 3) // 4 * 4


def test_the_first_root_of_a_guest_in_qemu(tmp_path: Path) -> None:
    kernel = find_stock_kernel(install(tmp_path, "6.1.0-1-amd64"))
    files = files_of(build_initramfs(kernel))
    assert {f"modules/{name}.ko" for name in MODULES} <= set(files)
    assert "modules/btrfs.ko" not in files  # this kernel has none, and most images need none
    settings = files["settings"].decode().splitlines()
    assert "CONSOLE='4 64'" in settings
    assert "SERIAL_CONSOLE=ttyS0" in settings
    assert "INTERFACE=eth0" in settings
    assert "BELL=''" in settings
    steps = next(line for line in settings if line.startswith("STEPS="))
    assert steps.startswith("STEPS='pc disks disk-root ")


def test_a_kernel_without_pci_is_told(tmp_path: Path) -> None:
    kernel = find_stock_kernel(install(tmp_path, "6.1.0-1-amd64", ("virtio_blk",)))
    with pytest.raises(NeedsPackageError, match="virtio_pci"):
        build_initramfs(kernel)


def test_uml_keeps_its_names(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "modules.dep").write_text("virtio_blk.ko:\n")
    (modules / "virtio_blk.ko").write_bytes(b"V")
    files = files_of(build_initramfs(Kernel(tmp_path / "linux", "6.1.0", modules)))
    settings = files["settings"].decode().splitlines()
    assert {"CONSOLE='4 1'", "INTERFACE=vec0", "BELL=/dev/tty15", "SERIAL_CONSOLE=''"} <= set(
        settings
    )
    assert "lib/pc.sh" not in files
    assert network_part(None).settings["INTERFACE"] == "vec0"


def test_words_for_the_kernel_leave_out_what_is_for_uml(tmp_path: Path) -> None:
    kernel = find_stock_kernel(install(tmp_path, "6.16.0-1-amd64"))
    words = ["net.ifnames=0", "init_on_free=1", "cryptomgr.notests", "no_timer_check"]
    given = ["quiet", "--", "x"]
    assert kernel_words(kernel, given) == words + given
