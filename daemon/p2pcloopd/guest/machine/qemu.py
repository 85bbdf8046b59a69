"""QEMU as a machine: a PC, run by KVM, or by TCG where KVM runs no guest (kvm.py)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import trio

from p2pcloop.errors import MismatchError, storage_error
from p2pcloop.frozen import dataclass
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloop.words import tr
from p2pcloopd.guest.console.messages import say
from p2pcloopd.guest.console.serial_line import SerialLine
from p2pcloopd.guest.machine import kvm
from p2pcloopd.guest.machine.firmware import BIOS, check_firmware, find_uefi
from p2pcloopd.guest.machine.identity import Shape, check_host, processor, shape_of, this_host
from p2pcloopd.guest.machine.qemu_boot import QemuBoot
from p2pcloopd.guest.machine.qemu_command import (
    PROGRAM,
    PROGRAM_PACKAGE,
    Accelerator,
    Boots,
    FirmwareFiles,
    KernelFiles,
    KernelForm,
    Pc,
    PcCard,
    RunningKernel,
    command_line,
    cpu_words,
)
from p2pcloopd.guest.machine.qemu_memory import new_memory
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.network.taps import forget_offloads
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.spec import GuestSpec, terminal_type
from p2pcloopd.guest.system.addresses import MTU
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.system.kernel_words import kernel_words
from p2pcloopd.guest.system.preload import compiled
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from p2pcloopd.guest.system.vmlinux import unpacked_kernel_file
from p2pcloopd.programs import find_program

_DATA = Path("/usr/share/qemu")
_TRANSLATOR = "qemu/accel-tcg-x86_64.so"
"""TCG, which Debian has as a module below the directory of libraries."""

_SOCKETS, _BOOT = Path("/run/disks"), Path("/run/boot")
_SHIM = Path("/run/memory.so")

_NETWORK_MAC, _DISPLAY_MAC = "52:54:00:70:32:01", "52:54:00:70:32:02"

_RUN_SIZE = 1 << 20
_NATIVE_MEMORY = 2 << 30
"""Bytes that QEMU may map besides the guest's memory: libraries, translated code, stacks."""

_THREADS = 128


@dataclass(frozen=True, slots=True)
class _Ends:
    """Descriptors that QEMU inherits."""

    memory: int
    console: int
    monitor: int


class QemuMachine:
    """See `Machine`."""

    def __init__(self, kernel: Kernel | None, resume: Resume | None = None) -> None:
        """Find out what this machine's processor does for a guest.

        Args:
            kernel: of the guest; None where firmware boots one from the disk, or where it runs
                already.
            resume: what the guest goes on with; None if it boots.

        Raises:
            MismatchError: it cannot go on here.
        """
        self.kernel = kernel
        self._resume = resume
        self._accelerator: Accelerator
        if resume is None:
            found = kvm.probe_kvm()
            self._accelerator = "kvm" if found.is_usable else "tcg"
            self._why_no_kvm = found.why_not
        else:
            # The probe may take longer than all the rest of a resume.
            self._accelerator = resume.machine.accelerator
            check_host(resume.machine, this_host(self._accelerator))
            self._why_no_kvm = tr("it ran so when it was suspended")
        # The variables of UEFI outlive a reboot.
        self._variables: int | None = None

    @property
    def name(self) -> str:
        """`qemu (kvm)` or `qemu (tcg)`."""
        return tr("qemu ({accelerator})", accelerator=self._accelerator)

    @property
    def remark(self) -> str:
        """Which of the two it is, and why."""
        if self._accelerator == "kvm":
            return tr("runs in QEMU, with KVM")
        return tr(
            "runs in QEMU without KVM, which takes longer: {why_no_kvm}",
            why_no_kvm=self._why_no_kvm,
        )

    async def start(self, spec: GuestSpec, native: NativeOutput, stack: AsyncExitStack) -> QemuBoot:
        """Start QEMU; see `Machine`."""
        resume, self._resume = self._resume, None
        shape = None if resume is None else shape_of(resume.machine)
        line = SerialLine()
        stack.callback(line.close)
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        monitor = trio.socket.from_stdlib_socket(ours)
        stack.callback(monitor.close)
        cards = await _cards(spec, resume, stack)
        if shape is not None:
            _check_disks(shape, spec)
            cards = connected(shape, cards)
        files = stack.enter_context(ExitStack())
        memory = await trio.to_thread.run_sync(_open_memory, spec, resume)
        stack.callback(os.close, memory)
        ends = _Ends(memory, line.theirs.fileno(), theirs.fileno())
        pc, visible = await trio.to_thread.run_sync(self._describe, spec, shape, cards, ends, files)
        fds = [memory, pc.console, pc.monitor, *(card.fd for card in cards if card.fd >= 0)]
        if isinstance(pc.boots, FirmwareFiles) and pc.boots.uefi is not None:
            fds.append(pc.boots.variables)
        boxed = await trio.to_thread.run_sync(_boxed, pc, visible)
        process = await stack.enter_async_context(
            sandbox.running(boxed, pass_fds=fds, output=native.write_end, cpu=spec.cpu)
        )
        line.theirs.close()
        theirs.close()
        return QemuBoot(process, line, monitor, pc, spec.ports_user, resume)

    def _describe(
        self,
        spec: GuestSpec,
        shape: Shape | None,
        cards: Sequence[PcCard],
        ends: _Ends,
        stack: ExitStack,
    ) -> tuple[Pc, dict[Path, Path]]:
        """What the machine has, and the files that QEMU sees: inside the sandbox → outside."""
        program = find_program(PROGRAM, PROGRAM_PACKAGE)
        check_firmware(spec.firmware)
        sockets = {_SOCKETS / str(n): disk.absolute() for n, disk in enumerate(spec.disks)}
        visible = {**sandbox.program_files(program), **sockets, _DATA: _DATA, BIOS: BIOS}
        if self._accelerator == "tcg":
            visible |= _translator(visible)
        boots, more = self._boots(spec, shape, stack)
        pc = Pc(
            program,
            self._accelerator,
            cpu_words(self._accelerator, processor()[0]),
            _memory_size(spec) if shape is None else shape.memory,
            ends.memory,
            tuple(sockets),
            cards,
            ends.console,
            ends.monitor,
            boots,
            ports=spec.ports_user is not None if shape is None else shape.ports is not None,
            arrives=shape is not None,
        )
        return pc, visible | more

    def _boots(
        self, spec: GuestSpec, shape: Shape | None, stack: ExitStack
    ) -> tuple[Boots, dict[Path, Path]]:
        firmware = spec.firmware
        if shape is not None:
            if shape.boot == "kernel" or shape.boot == "vmlinux":
                return RunningKernel(shape.boot), {}
            firmware = shape.boot
        if firmware == "bios":
            return FirmwareFiles(), {}
        if firmware == "uefi":
            return self._uefi()
        if self.kernel is None:
            kernel = spec.kernel
            self.kernel = kernel if isinstance(kernel, Kernel) else find_stock_kernel(kernel)
        return _kernel_files(self.kernel, spec, stack, unpacked=self._accelerator == "tcg")

    def _uefi(self) -> tuple[FirmwareFiles, dict[Path, Path]]:
        uefi = find_uefi()
        if self._variables is None:
            self._variables = os.memfd_create("variables", os.MFD_CLOEXEC)
            os.write(self._variables, uefi.variables.read_bytes())
        code = uefi.code.resolve()
        return FirmwareFiles(code, self._variables), {code: code}


def _kernel_files(
    kernel: Kernel, spec: GuestSpec, stack: ExitStack, *, unpacked: bool
) -> tuple[KernelFiles, dict[Path, Path]]:
    """A kernel, its first root and its words, and the files that QEMU sees.

    Args:
        unpacked: whether it should not have to unpack itself.
    """
    initramfs = stack.enter_context(temporary_folder()) / "initramfs.cpio"
    initramfs.write_bytes(spec.initramfs(kernel))
    initramfs.chmod(0o644)
    words = [
        *("console=ttyS0", "root=/dev/vda", "ro" if spec.read_only else "rw", "panic=1"),
        *terminal_type(spec),
        *kernel_words(kernel, spec.append_words()),
    ]
    program = unpacked_kernel_file(kernel.path) if unpacked else None
    form: KernelForm = "kernel" if program is None else "vmlinux"
    image, root = (_BOOT / name for name in (form, "initramfs.cpio"))
    files = KernelFiles(image, root, " ".join(words), form)
    return files, {image: program or kernel.path, root: initramfs}


def _memory_size(spec: GuestSpec) -> int:
    return spec.memory & ~0xFFF


def _open_memory(spec: GuestSpec, resume: Resume | None) -> int:
    """Return the descriptor of the file that is the guest's memory."""
    if resume is None:
        return new_memory(_memory_size(spec))
    try:
        # QEMU gets the descriptor itself: its user may not reach the file.
        return os.open(resume.memory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise storage_error(
            tr("cannot open the guest's memory, {memory}", memory=resume.memory), err
        ) from err


def _check_disks(shape: Shape, spec: GuestSpec) -> None:
    """Refuse other disks than those that a guest had.

    Raises:
        MismatchError: there are more or fewer.
    """
    if len(spec.disks) != shape.disks:
        raise MismatchError(
            tr(
                "the guest had {disks} disks when it was suspended, and would have"
                " {disks_count} now",
                disks=shape.disks,
                disks_count=len(spec.disks),
            )
        )


def connected(shape: Shape, cards: Sequence[PcCard]) -> list[PcCard]:
    """Return the cards that a guest had, which lead where those lead that it is to have.

    Raises:
        MismatchError: it is to have one that it had not.
    """
    ours = {card.role: card for card in cards}
    found = []
    for card in shape.cards:
        leads = ours.pop(card.role, card)
        found.append(PcCard(card.role, leads.kind, leads.fd, card.mac, card.mtu))
    if ours:
        raise MismatchError(
            "the guest had no network card when it was suspended, and gets none later",
            hint="resume it without --net and --display",
        )
    return found


def _translator(visible: dict[Path, Path]) -> dict[Path, Path]:
    """TCG's module, beside the C library; none where it is built in."""
    libraries = {path.parent for path in visible if path.name == "libc.so.6"}
    places = [Path("/usr", *folder.parts[-2:], _TRANSLATOR) for folder in libraries]
    return {place: place for place in places if place.exists()}


def _boxed(pc: Pc, visible: dict[Path, Path]) -> sandbox.Sandbox:
    environment = {"HOME": "/", "PATH": "/usr/bin"}
    if pc.arrives:
        reason = tr("a guest that was suspended goes on behind a small shim")
        visible = visible | {_SHIM: compiled("memory_shim", reason)}
        environment |= {"LD_PRELOAD": str(_SHIM), "P2PCLOOP_MEMORY": str(pc.memory_file)}
    return sandbox.prepare(
        command_line(pc),
        visible=visible,
        devices=[kvm.DEVICE] if pc.accelerator == "kvm" else [],
        memory=2 * pc.memory + _NATIVE_MEMORY,
        processes=_THREADS,
        tmpfs={"/run": _RUN_SIZE},
        environment=environment,
    )


async def _cards(spec: GuestSpec, resume: Resume | None, stack: AsyncExitStack) -> list[PcCard]:
    """The network cards of a guest, which goes on with `resume` or boots; `stack` ends what is at
    their other end."""
    cards = []
    if spec.network == "user":
        from p2pcloopd.guest.network import slirp as network  # noqa: PLC0415  few guests have one

        plugged = None if resume is None else resume.plugged.wait
        wire = await stack.enter_async_context(
            network.user_network(say, ports=spec.forwarded, opened=spec.opened, plugged=plugged)
        )
        cards.append(PcCard("network", "dgram", wire.fileno(), _NETWORK_MAC, MTU))
    elif spec.card is not None:
        forget_offloads(spec.card.tap)
        cards.append(PcCard("network", "tap", spec.card.tap, spec.card.mac, spec.card.mtu))
    if spec.display is not None:
        from p2pcloopd.guest.display import wire as display  # noqa: PLC0415  as above

        wire = await stack.enter_async_context(display.display_wire(spec.display, say))
        cards.append(PcCard("display", "dgram", wire.fileno(), _DISPLAY_MAC, MTU))
    return cards
