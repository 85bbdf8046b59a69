"""The kinds of machines, and of firmware: words of the command line."""

from __future__ import annotations

from typing import Literal

Vm = Literal["uml", "qemu"]
"""The machine of a guest: User-Mode Linux, or QEMU."""

DiskProtocol = Literal["vhost-user", "nbd"]
"""How a guest's machine gets its disks from the block server."""

Firmware = Literal["bios", "uefi"]
"""What boots a disk by its own boot loader."""
