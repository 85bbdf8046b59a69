"""The command that runs a guest's kernel: its command line, and the sandbox round it.

The kernel runs natively, as a process of this machine, so all of it is in a sandbox
(sandbox/bubblewrap.py). Kernel, modules and busybox come from this system, never from the image.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from p2pcloop.protocol import virtio_blk, virtio_console
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.spec import GuestSpec, terminal_type
from p2pcloopd.guest.system import xsave
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.system.kernel_words import kernel_words

CONSOLE = 1
"""The number of the console that the user sees: /dev/tty1, where a PC has its first login."""

_UML_DIRECTORY, _UMID = Path("/run/uml"), "guest"

MANAGEMENT_SOCKET = _UML_DIRECTORY / _UMID / "mconsole"
"""Where UML's management console listens, inside the sandbox."""

_SOCKETS = Path("/run/disks")
_PORTS = Path("/run/ports")
_SHIM = Path("/run/xsave.so")

_MEMORY_SLACK = 64 << 20
"""Bytes of the tmpfs for the guest's memory, besides that memory."""

_RUN_SIZE = 1 << 20

_MEMORY_PER_TASK = 128 << 10
"""A Linux kernel has at most one task for each so many bytes of its memory (threads-max), and UML
has a process of the host for each task with memory of its own."""

_NATIVE_TASKS = 64

_NATIVE_MEMORY = 1 << 30
"""Bytes that a process may map besides the guest's memory; it may map that twice."""


def sandboxed_kernel(
    spec: GuestSpec, kernel: Kernel, parameters: list[str], stack: ExitStack
) -> tuple[sandbox.Sandbox, Path]:
    """Put together the sandbox and the command that boots a guest.

    Args:
        spec: the guest.
        kernel: its kernel.
        parameters: the kernel's parameters for its consoles and its network card.
        stack: removes the files that are made, at its end.

    Returns:
        The sandbox, and the directory of the host that the kernel sees under the same name: a
        socket that is bound there gets the answers of the management console.
    """
    directory = _guest_directory(stack)
    devices = _devices(spec)
    visible = {**sandbox.program_files(kernel.path), **devices, directory: directory}
    environment = {"HOME": "/", "PATH": "/usr/bin"}
    if xsave.is_needed(kernel):
        visible[_SHIM] = xsave.compiled_shim()
        environment["LD_PRELOAD"] = str(_SHIM)
    initramfs = directory / "initramfs.cpio"
    initramfs.write_bytes(spec.initramfs(kernel))
    initramfs.chmod(0o644)
    boxed = sandbox.prepare(
        _command_line(spec, kernel, [*_device_words(devices), *parameters], directory),
        visible=visible,
        memory=2 * spec.memory + _NATIVE_MEMORY,
        processes=spec.memory // _MEMORY_PER_TASK + _NATIVE_TASKS,
        tmpfs={"/run": _RUN_SIZE, "/dev/shm": spec.memory + _MEMORY_SLACK},  # noqa: S108  inside
        environment=environment,
    )
    return boxed, directory


def _guest_directory(stack: ExitStack) -> Path:
    """Make a directory for the sandbox. Other users of this machine cannot reach it; the user that
    the sandbox runs as, which is another one if root starts it, can read it."""
    directory = stack.enter_context(temporary_folder()) / "guest"
    for path in (directory, directory / "empty"):
        path.mkdir()
        path.chmod(0o755)
    return directory


def _devices(spec: GuestSpec) -> dict[Path, Path]:
    """The sockets of the guest's devices: inside the sandbox → on the host. The first one is that
    of /dev/vda."""
    devices = {_SOCKETS / str(n): disk.absolute() for n, disk in enumerate(spec.disks)}
    if spec.ports_socket is not None:
        devices[_PORTS] = spec.ports_socket.absolute()
    return devices


def _device_words(devices: dict[Path, Path]) -> list[str]:
    """The kernel's parameters for its devices, in their order."""
    kinds = {_PORTS: virtio_console.DEVICE_ID}
    return [
        f"virtio_uml.device={socket}:{kinds.get(socket, virtio_blk.DEVICE_ID)}"
        for socket in devices
    ]


def _command_line(
    spec: GuestSpec, kernel: Kernel, parameters: list[str], directory: Path
) -> list[str]:
    return [
        str(kernel.path),
        f"mem={spec.memory >> 10}K",
        *("con=null", *parameters, f"console=tty{CONSOLE}", *terminal_type(spec)),
        f"initrd={directory / 'initramfs.cpio'}",
        *("root=/dev/vda", "ro" if spec.read_only else "rw"),
        *(f"uml_dir={_UML_DIRECTORY}", f"umid={_UMID}", f"hostfs={directory / 'empty'}"),
        # A reboot and a panic end the program.
        *("noreboot", "panic=1", *kernel_words(kernel, spec.append_words())),
    ]
