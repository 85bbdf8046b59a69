"""Chooses the machine of a guest."""

from __future__ import annotations

from p2pcloopd.guest.machine.machine import Machine
from p2pcloopd.guest.machine.uml import UmlMachine
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.kernel import Kernel, find_kernel
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel


def choose_machine(spec: GuestSpec) -> Machine:
    """Return the machine that a spec asks for.

    Raises:
        NeedsPackageError: a program, kernel or firmware is not on this system.
        NotHereError: there is no such kernel.
    """
    if spec.vm == "uml":
        kernel = spec.kernel
        return UmlMachine(kernel if isinstance(kernel, Kernel) else find_kernel(kernel))
    from p2pcloopd.guest.machine.qemu import QemuMachine  # noqa: PLC0415  not for most guests

    if spec.firmware is not None or spec.resume is not None:
        return QemuMachine(None, spec.resume)
    kernel = spec.kernel
    return QemuMachine(kernel if isinstance(kernel, Kernel) else find_stock_kernel(kernel))
