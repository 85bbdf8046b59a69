"""Kernels for QEMU: those of a distribution, as PCs boot them, with their modules."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from p2pcloop.errors import NeedsPackageError, NotHereError
from p2pcloop.words import tr
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, Kernel

HINT = tr(
    "`tools/get-stock-kernel` unpacks one for you alone, `apt-get install linux-image-amd64`"
    " installs one, and --kernel PATH names another"
)

_HEAD_SIZE = 1 << 16
# Documentation/arch/x86/boot.rst of the kernel: "HdrS", and where the text of the version lies.
_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_VERSION_AT, _VERSION_BASE = 0x20E, 0x200
_BOOT = Path("/boot")
_RELEASE = re.compile(r"\d+\.\d+[\w.+~-]*")
_CONFIGURED = re.compile(r"^CONFIG_(\w+)=y$", re.MULTILINE)


def unpacked_stock_kernel() -> Path:
    """Where `tools/get-stock-kernel` puts the kernel that it unpacks for this user."""
    return platformdirs.user_data_path("p2pcloop", appauthor=False) / "stock/vmlinuz"


def find_stock_kernel(path: Path | None = None, boot: Path = _BOOT) -> Kernel:
    """Find a kernel for QEMU, and its modules.

    Args:
        path: the kernel, a bzImage, or SYSTEM_KERNEL; None for the one that P2PCLOOP_STOCK_KERNEL
            in the environment names, else the unpacked one, else the system's.
        boot: where the system has its kernels.

    Raises:
        NotHereError: there is no such file as `path`.
        NeedsPackageError: there is no kernel, or it is none for a PC, or has no modules here.
    """
    if path is None and (chosen := os.environ.get("P2PCLOOP_STOCK_KERNEL")):
        path = Path(chosen)
    if path is not None and path != SYSTEM_KERNEL:
        return _read_kernel(path)
    if path is None and unpacked_stock_kernel().exists():
        return _read_kernel(unpacked_stock_kernel())
    for each in _system_kernels(boot):
        try:
            return _read_kernel(each)
        except (NotHereError, NeedsPackageError):
            continue
    raise NeedsPackageError("this system has no kernel for a guest in QEMU", hint=HINT)


def _system_kernels(boot: Path) -> Iterator[Path]:
    """The kernels of the system: the one that runs, then the newest first."""
    yield boot / f"vmlinuz-{os.uname().release}"
    yield from sorted(boot.glob("vmlinuz-*"), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _read_kernel(path: Path) -> Kernel:
    path = path.absolute()
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_SIZE)
    except FileNotFoundError as err:
        raise NotHereError(tr("there is no kernel {path}", path=path), hint=HINT) from err
    except OSError as err:
        raise NeedsPackageError(
            tr("the kernel {path} cannot be read: {why}", path=path, why=err.strerror), hint=HINT
        ) from err
    release = kernel_release(head)
    if release is None:
        hint = HINT
        if head.startswith(b"\x7fELF"):
            hint = tr("a User-Mode Linux kernel is for `--vm uml`; ") + HINT
        raise NeedsPackageError(
            tr("{path} is no Linux kernel for a PC (bzImage)", path=path), hint=hint
        )
    modules = _find_modules(path.resolve(), release)
    if modules is None:
        raise NeedsPackageError(
            tr(
                "the modules of the kernel {path} ({release}) are not here",
                path=path,
                release=release,
            ),
            hint=tr(
                "put them into lib/modules/{release} beside it, with the modules.dep that"
                " depmod makes; or: {hint}",
                release=release,
                hint=HINT,
            ),
        )
    return Kernel(path.resolve(), release, modules, _options(path.resolve(), release), kind="pc")


def kernel_release(head: bytes) -> str | None:
    """Return what a bzImage calls itself, `6.1.0-57-amd64`; None if it is no bzImage.

    Args:
        head: its first 64 KiB.
    """
    if not head.startswith(_MAGIC, _MAGIC_AT):
        return None
    (pointer,) = struct.unpack_from("<H", head, _VERSION_AT)
    words = head[_VERSION_BASE + pointer :].partition(b"\0")[0].decode(errors="replace").split()
    return words[0] if words and _RELEASE.fullmatch(words[0]) else None


def _find_modules(kernel: Path, release: str) -> Path | None:
    folders = (kernel.parent, kernel.parent.parent, kernel.parent.parent / "usr")
    beside = [folder / "lib/modules" for folder in folders]
    for root in (*beside, Path("/lib/modules"), Path("/usr/lib/modules")):
        if (root / release / "modules.dep").is_file():
            return root / release
    return None


def _options(kernel: Path, release: str) -> frozenset[str]:
    config = kernel.with_name(f"config-{release}")
    return frozenset(_CONFIGURED.findall(config.read_text())) if config.is_file() else frozenset()
