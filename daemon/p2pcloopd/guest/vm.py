"""The kinds of machines, and of firmware: words of the command line."""

from __future__ import annotations

from typing import Literal

Vm = Literal["uml", "qemu"]
"""The machine of a guest: User-Mode Linux, whose disks come over vhost-user, or QEMU, whose disks
come over NBD."""

Firmware = Literal["bios", "uefi"]
"""What boots a disk by its own boot loader."""
