"""A QEMU that runs: one boot of a guest, or what follows its resume."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from p2pcloop.errors import BusyError, GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.protocol.qmp import MachineEvent
from p2pcloopd.guest.console.serial_line import SerialLine
from p2pcloopd.guest.machine.capture import Capture
from p2pcloopd.guest.machine.device_state import DeviceStates
from p2pcloopd.guest.machine.firmware import BIOS_FILE
from p2pcloopd.guest.machine.identity import PortPlace, shape_of, this_host
from p2pcloopd.guest.machine.qemu_command import Pc
from p2pcloopd.guest.machine.qemu_memory import FileMemory, PrivateMemory
from p2pcloopd.guest.machine.qemu_ports import QemuPorts
from p2pcloopd.guest.machine.qmp_client import Qmp
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.ports import MakePorts, Port, PortsUser
from p2pcloopd.guest.result import Reason
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.transcript import Transcript

_PANICKED = 134
"""The exit code of a guest whose kernel panicked: that of UML, which aborts."""

_SETTLE_SECONDS = 5.0
_STOP_SECONDS = 60.0
"""Before a guest stops, its disk does what it was asked for, and that may have to arrive."""

_CONT_PAUSE = 0.05
"""Before a guest is asked once more to go on."""

_UNPLUGGED_SECONDS = 1.0
"""How long a resumed guest has no network, so that it notices."""

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


class QemuBoot:
    """A QEMU that runs; see `Boot`."""

    def __init__(
        self,
        process: SandboxedProcess,
        console: SerialLine,
        monitor: trio.socket.SocketType,
        pc: Pc,
        ports_user: PortsUser | None,
        resume: Resume | None = None,
    ) -> None:
        """Take over a QEMU that was started.

        Args:
            monitor: our end of its socket.
            pc: the machine.
            ports_user: has ports in it, or None.
            resume: what it goes on with; None if it boots.
        """
        self.process = process
        self.console = console
        self._pc = pc
        self._resume = resume
        self._qmp = Qmp(monitor, self._take_event)
        self._states = DeviceStates(self._qmp, pc.uefi or BIOS_FILE)
        self._ports_user = ports_user or (_NoPorts() if pc.ports else None)
        self._ports: QemuPorts | None = None
        self._ended_by: str | None = None
        self._says_halted = trio.Event()
        self._is_halted = False
        self._is_captured = resume is not None
        if resume is None:
            console.listens.set()
        self._is_suspended = False

    async def attend(self) -> None:
        """Talk to QEMU."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_halt)
            if self._ports_user is not None:
                nursery.start_soon(self._ports_user.use_ports, self._make_ports)
            if self._resume is not None:
                nursery.start_soon(self._go_on_with, self._resume)
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
        if self._is_suspended:
            return 0, "suspended"
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

    @asynccontextmanager
    async def captured(self) -> AsyncIterator[Capture]:
        """Stop the guest, and take what it needs to go on elsewhere; see `Boot`."""
        if self._is_captured:
            raise BusyError("the guest is being suspended or resumed already")
        self._is_captured = True
        async with AsyncExitStack() as stack:
            stack.callback(setattr, self, "_is_captured", False)
            places: Sequence[PortPlace] = ()
            if self._ports is not None:
                places = await stack.enter_async_context(self._ports.unchanged())
            host = await trio.to_thread.run_sync(this_host, self._pc.accelerator)
            stack.push_async_callback(self._go_on)
            await self._qmp.execute("stop", seconds=_STOP_SECONDS)
            suspended = int(time.time())
            device_state = await self._states.take()
            memory = await trio.to_thread.run_sync(self._open_memory)
            stack.callback(memory.close)
            yield Capture(self._pc, places, host, device_state, memory, suspended, self._end)

    async def _go_on(self) -> None:
        """Let a guest that was stopped go on, if it was not ended."""
        if self._is_suspended:
            return
        refused: GuestError | None = None
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            while not self._qmp.ended.is_set():
                try:
                    await self._qmp.execute("cont", seconds=_STOP_SECONDS)
                except GuestError as err:
                    refused = err
                else:
                    return
                # QEMU tells that a state is complete a moment before it lets the guest go on.
                await trio.sleep(_CONT_PAUSE)
        if not self._qmp.ended.is_set():
            raise GuestError("QEMU does not let the guest go on, which stands still") from refused

    def _end(self) -> None:
        self._is_suspended = True
        self.process.kill()

    def _open_memory(self) -> FileMemory | PrivateMemory:
        if self._resume is None:
            return FileMemory(self._pc.memory_file, self._pc.memory)
        return PrivateMemory(self.process.command_pid(), self._pc.memory_file, self._pc.memory)

    async def _go_on_with(self, resume: Resume) -> None:
        """Load the state of a guest that was suspended, and let it go on."""
        await self._qmp.ready.wait()
        try:
            if self._ports is not None:
                await self._ports.inherited.wait()
            await self._states.give(await resume.device_state())
            self.console.listens.set()
            if self._ports is not None:
                self._ports.loaded.set()
            await self._set_links(up=False)
            await resume.ready()
            await self._qmp.execute("cont", seconds=_STOP_SECONDS)
            resume.gone_on.set()
            self._is_captured = False
            await trio.sleep(_UNPLUGGED_SECONDS)
            await self._set_links(up=True)
            resume.plugged.set()
        except GuestError:
            if not self._qmp.ended.is_set():
                raise
            # It has printed why.

    async def _set_links(self, *, up: bool) -> None:
        """Pull the cables of the network cards out, or plug those in that lead somewhere. A DHCP
        client of the image then asks for an address anew."""
        for number, card in enumerate(self._pc.cards):
            if not up or card.kind != "none":
                name = f"virtio-net-pci.{number}"  # as QEMU calls a card without a name
                await self._qmp.execute("set_link", {"name": name, "up": up})

    def _make_ports(self, ports: Sequence[Port], spare: int) -> QemuPorts:
        inherited = None if self._resume is None else shape_of(self._resume.machine).ports
        self._ports = QemuPorts(self._qmp, ports, spare, inherited)
        return self._ports

    def _take_event(self, event: MachineEvent) -> None:
        if event.name == "SHUTDOWN":
            self._ended_by = str(event.data.get("reason"))
        self._states.take_event(event)
        if self._ports is not None:
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


@dataclass(frozen=True, slots=True)
class _NoPorts:
    """Has no ports in a guest that has had some."""

    async def use_ports(self, make: MakePorts) -> None:
        device = make([], 0)
        try:
            await device.serve()
        finally:
            device.close()
