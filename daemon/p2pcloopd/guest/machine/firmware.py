"""Firmware for QEMU: SeaBIOS and OVMF, as Debian has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pcloop.errors import NeedsPackageError
from p2pcloopd.guest.vm import Firmware

BIOS = Path("/usr/share/seabios")
"""SeaBIOS, and what it needs of QEMU's cards."""

BIOS_FILE = BIOS / "bios-256k.bin"

_OVMF = Path("/usr/share/OVMF")
_UEFI = (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd"))
"""Code and variables, of Debian 12 and of Debian 11."""


@dataclass(frozen=True, slots=True)
class Uefi:
    """Files of OVMF.

    Attributes:
        code: the firmware.
        variables: its store of variables as it is at first; each guest has a copy.
    """

    code: Path
    variables: Path


def check_firmware(firmware: Firmware | None) -> None:
    """Refuse firmware that is not on this system; without any, QEMU still needs SeaBIOS.

    Raises:
        NeedsPackageError: it is missing.
    """
    if firmware == "uefi":
        find_uefi()
    if not BIOS_FILE.is_file():
        raise NeedsPackageError("SeaBIOS is not installed", hint="apt-get install seabios")


def find_uefi(folder: Path = _OVMF) -> Uefi:
    """Return OVMF's files.

    Raises:
        NeedsPackageError: it is not installed.
    """
    for code, variables in _UEFI:
        if (folder / code).is_file() and (folder / variables).is_file():
            return Uefi(folder / code, folder / variables)
    raise NeedsPackageError(
        "the firmware OVMF, which boots a disk by UEFI, is not installed",
        hint="apt-get install ovmf; many disks boot with `--firmware bios` as well",
    )
