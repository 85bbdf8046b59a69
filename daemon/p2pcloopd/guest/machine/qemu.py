"""QEMU as a machine: a PC, run by KVM, or by TCG where KVM runs no guest (kvm.py)."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import trio

from p2pcloop.errors import GuestError
from p2pcloop.protocol.qmp import MachineEvent
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloopd.guest.console.messages import say
from p2pcloopd.guest.console.serial_line import SerialLine
from p2pcloopd.guest.machine import kvm
from p2pcloopd.guest.machine.firmware import BIOS, check_firmware, find_uefi
from p2pcloopd.guest.machine.qemu_command import (
    FirmwareFiles,
    KernelFiles,
    Pc,
    PcCard,
    command_line,
)
from p2pcloopd.guest.machine.qemu_memory import new_memory
from p2pcloopd.guest.machine.qemu_ports import QemuPorts
from p2pcloopd.guest.machine.qmp_client import Qmp
from p2pcloopd.guest.network.taps import forget_offloads
from p2pcloopd.guest.ports import Port, PortsUser
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.spec import GuestSpec, Reason, terminal_type
from p2pcloopd.guest.system.addresses import MTU
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.system.kernel_words import kernel_words
from p2pcloopd.guest.transcript import Transcript
from p2pcloopd.programs import find_program

PROGRAM, PACKAGE = "qemu-system-x86_64", "qemu-system-x86"

_DATA = Path("/usr/share/qemu")
_TRANSLATOR = "qemu/accel-tcg-x86_64.so"
"""TCG, which Debian has as a module below the directory of libraries."""

_SOCKETS, _BOOT = Path("/run/disks"), Path("/run/boot")

_NETWORK_MAC, _DISPLAY_MAC = "52:54:00:70:32:01", "52:54:00:70:32:02"

_RUN_SIZE = 1 << 20
_NATIVE_MEMORY = 2 << 30
"""Bytes that QEMU may map besides the guest's memory: libraries, translated code, stacks."""

_THREADS = 128

_PANICKED = 134
"""The exit code of a guest whose kernel panicked: that of UML, which aborts."""

_SETTLE_SECONDS = 5.0
_HALT_LOOKS, _HALT_PAUSE = 20, 0.1
_FLAGS = re.compile(r"[ER]FL=([0-9a-f]+).*HLT=1", re.DOTALL)
_INTERRUPTS = 1 << 9
_REGISTERS = {"command-line": "info registers"}


def is_halted(registers: str) -> bool:
    """Whether a processor waits for an interrupt, and has interrupts turned off: for ever.

    Args:
        registers: what QEMU's `info registers` says; the flags are RFL in 64-bit mode, else EFL.
    """
    found = _FLAGS.search(registers)
    return found is not None and not int(found[1], 16) & _INTERRUPTS


class QemuMachine:
    """See `Machine`."""

    def __init__(self, kernel: Kernel | None) -> None:
        """Find out what this machine's processor does for a guest.

        Args:
            kernel: of the guest; None where firmware boots one from the disk.
        """
        self.kernel = kernel
        self._kvm = kvm.probe_kvm()
        # The variables of UEFI outlive a reboot.
        self._variables: int | None = None

    @property
    def name(self) -> str:
        """`qemu (kvm)` or `qemu (tcg)`."""
        return f"qemu ({'kvm' if self._kvm.is_usable else 'tcg'})"

    @property
    def remark(self) -> str:
        """Which of the two it is, and why."""
        if self._kvm.is_usable:
            return "runs in QEMU, with KVM"
        return f"runs in QEMU without KVM, which takes longer: {self._kvm.why_not}"

    async def start(self, spec: GuestSpec, native: NativeOutput, stack: AsyncExitStack) -> QemuBoot:
        """Start QEMU; see `Machine`."""
        line = SerialLine()
        stack.callback(line.close)
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        monitor = trio.socket.from_stdlib_socket(ours)
        stack.callback(monitor.close)
        cards = await _cards(spec, stack)
        files = stack.enter_context(ExitStack())
        memory = new_memory(spec.memory & ~0xFFF)
        stack.callback(os.close, memory)
        ends = (memory, line.theirs.fileno(), theirs.fileno())
        pc, visible = await trio.to_thread.run_sync(self._describe, spec, cards, ends, files)
        fds = [pc.memory_file, pc.console, pc.monitor, *(card.fd for card in cards)]
        if isinstance(pc.boots, FirmwareFiles) and pc.boots.uefi is not None:
            fds.append(pc.boots.variables)
        boxed = await trio.to_thread.run_sync(_boxed, pc, visible)
        process = await stack.enter_async_context(
            sandbox.running(boxed, pass_fds=fds, output=native.write_end, cpu=spec.cpu)
        )
        line.theirs.close()
        theirs.close()
        return QemuBoot(process, line, monitor, spec.ports_user)

    def _describe(
        self,
        spec: GuestSpec,
        cards: Sequence[PcCard],
        ends: tuple[int, int, int],
        stack: ExitStack,
    ) -> tuple[Pc, dict[Path, Path]]:
        """What the machine has, and the files that QEMU sees: inside the sandbox → outside."""
        memory, console, monitor = ends
        program = find_program(PROGRAM, PACKAGE)
        check_firmware(spec.firmware)
        sockets = {_SOCKETS / str(n): disk.absolute() for n, disk in enumerate(spec.disks)}
        visible = {**sandbox.program_files(program), **sockets, _DATA: _DATA, BIOS: BIOS}
        if not self._kvm.is_usable:
            visible |= _translator(visible)
        boots, more = self._boots(spec, stack)
        pc = Pc(
            program,
            "kvm" if self._kvm.is_usable else "tcg",
            spec.memory & ~0xFFF,
            memory,
            tuple(sockets),
            cards,
            console,
            monitor,
            boots,
            ports=spec.ports_user is not None,
        )
        return pc, visible | more

    def _boots(
        self, spec: GuestSpec, stack: ExitStack
    ) -> tuple[KernelFiles | FirmwareFiles, dict[Path, Path]]:
        if self.kernel is None:
            if spec.firmware != "uefi":
                return FirmwareFiles(), {}
            uefi = find_uefi()
            if self._variables is None:
                self._variables = os.memfd_create("variables", os.MFD_CLOEXEC)
                os.write(self._variables, uefi.variables.read_bytes())
            code = uefi.code.resolve()
            return FirmwareFiles(code, self._variables), {code: code}
        initramfs = stack.enter_context(temporary_folder()) / "initramfs.cpio"
        initramfs.write_bytes(spec.initramfs(self.kernel))
        initramfs.chmod(0o644)
        words = [
            *("console=ttyS0", "root=/dev/vda", "ro" if spec.read_only else "rw", "panic=1"),
            *terminal_type(spec),
            *kernel_words(self.kernel, spec.append_words()),
        ]
        kernel, root = (_BOOT / name for name in ("vmlinuz", "initramfs.cpio"))
        files = {kernel: self.kernel.path, root: initramfs}
        return KernelFiles(kernel, root, " ".join(words)), files


def _translator(visible: dict[Path, Path]) -> dict[Path, Path]:
    """TCG's module, beside the C library; none where it is built in."""
    libraries = {path.parent for path in visible if path.name == "libc.so.6"}
    places = [Path("/usr", *folder.parts[-2:], _TRANSLATOR) for folder in libraries]
    return {place: place for place in places if place.exists()}


def _boxed(pc: Pc, visible: dict[Path, Path]) -> sandbox.Sandbox:
    return sandbox.prepare(
        command_line(pc),
        visible=visible,
        devices=[kvm.DEVICE] if pc.accelerator == "kvm" else [],
        memory=2 * pc.memory + _NATIVE_MEMORY,
        processes=_THREADS,
        tmpfs={"/run": _RUN_SIZE},
        environment={"HOME": "/", "PATH": "/usr/bin"},
    )


async def _cards(spec: GuestSpec, stack: AsyncExitStack) -> list[PcCard]:
    """The network cards of a guest; `stack` ends what is at their other end."""
    cards = []
    if spec.network == "user":
        from p2pcloopd.guest.network import slirp as network  # noqa: PLC0415  few guests have one

        wire = await stack.enter_async_context(network.user_network(say, ports=spec.forwarded))
        cards.append(PcCard("network", "dgram", wire.fileno(), _NETWORK_MAC, MTU))
    elif spec.card is not None:
        forget_offloads(spec.card.tap)
        cards.append(PcCard("network", "tap", spec.card.tap, spec.card.mac, spec.card.mtu))
    if spec.display is not None:
        from p2pcloopd.guest.display import wire as display  # noqa: PLC0415  as above

        wire = await stack.enter_async_context(display.display_wire(spec.display, say))
        cards.append(PcCard("display", "dgram", wire.fileno(), _DISPLAY_MAC, MTU))
    return cards


class QemuBoot:
    """A QEMU that runs; see `Boot`."""

    def __init__(
        self,
        process: SandboxedProcess,
        console: SerialLine,
        monitor: trio.socket.SocketType,
        ports_user: PortsUser | None,
    ) -> None:
        self.process = process
        self.console = console
        self._qmp = Qmp(monitor, self._take_event)
        self._ports_user = ports_user
        self._ports: QemuPorts | None = None
        self._ended_by: str | None = None
        self._says_halted = trio.Event()
        self._is_halted = False

    async def attend(self) -> None:
        """Talk to QEMU."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_halt)
            if self._ports_user is not None:
                nursery.start_soon(self._ports_user.use_ports, self._make_ports)
            await self._qmp.run()
            nursery.cancel_scope.cancel()

    async def settle(self) -> None:
        """Take QEMU's last events."""
        with trio.move_on_after(_SETTLE_SECONDS):
            await self._qmp.ended.wait()

    def ring(self) -> None:
        """Do nothing: the agent waits for no bell."""

    def heard(self, transcript: Transcript) -> None:
        """Look whether the kernel has halted: QEMU does not end then."""
        if not self._says_halted.is_set() and transcript.halted():
            self._says_halted.set()

    async def press_ctrl_alt_del(self) -> None:
        """Press the keys on the PC's keyboard, once QEMU answers."""
        await self._qmp.ready.wait()
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        await self._qmp.execute("send-key", {"keys": keys})

    def ending(self, transcript: Transcript, exit_code: int) -> tuple[int, Reason]:
        """Tell by what QEMU said at its end; see `Boot`."""
        if self._is_halted:
            return 0, "poweroff"
        match self._ended_by:
            case "guest-shutdown":
                return 0, "poweroff"
            case "guest-reset" if not transcript.panicked():
                return 0, "reboot"
            case "guest-reset" | "guest-panic":
                return _PANICKED, "panic"
        return exit_code or 1, "crash"

    def _make_ports(self, ports: Sequence[Port], spare: int) -> QemuPorts:
        self._ports = QemuPorts(self._qmp, ports, spare)
        return self._ports

    def _take_event(self, event: MachineEvent) -> None:
        if event.name == "SHUTDOWN":
            self._ended_by = str(event.data.get("reason"))
        elif self._ports is not None:
            self._ports.take_event(event)

    async def _watch_halt(self) -> None:
        """End QEMU once its processor waits for an interrupt, and has interrupts turned off. What a
        guest prints alone is no proof."""
        await self._says_halted.wait()
        for _ in range(_HALT_LOOKS):
            try:
                told = await self._qmp.execute("human-monitor-command", _REGISTERS)
            except GuestError:
                return
            if is_halted(str(told)):
                self._is_halted = True
                self.process.kill()
                return
            await trio.sleep(_HALT_PAUSE)
