"""What a state is resumed with: its memory, its devices, and what its guest is told."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from p2pcloop.formats.machine_state import MachineState
from p2pcloop.formats.profile import Touch, merge_touches
from p2pcloop.frozen import dataclass
from p2pcloopd.block.memory_file import open_memory_file
from p2pcloopd.block.spec import BlockServerSpec, DevicesPart, MemoryPart
from p2pcloopd.guest.channel.waking import Waking, WokenCard
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.network.card import Card
from p2pcloopd.guest.network.choice import Network
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.addresses import MTU, PC_INTERFACE, USER


@dataclass(frozen=True, slots=True)
class Resuming:
    """A guest that is to go on.

    Attributes:
        machine: what it ran on.
        host_name: that it gets; "" for the one that it has.
        answers_first: whether its console is what it is waited for: it goes on once that can
            answer, and is woken later.
        rehearses: whether it is woken after its answer even where nothing has to come.
    """

    machine: MachineState
    host_name: str
    answers_first: bool = True
    rehearses: bool = False

    def with_memory(self, disk: BlockServerSpec, folder: Path, stack: ExitStack) -> BlockServerSpec:
        """What serves a guest's disk, as what serves its memory, too.

        Args:
            folder: that no other user can enter; it has a file while this begins.
            stack: holds the file that the guest's machine gets.

        Raises:
            P2pcloopError: as of `open_memory_file`.
        """
        part = self.machine.memory
        # Of root's guests the machine runs as another user.
        everyone = os.geteuid() == 0
        file = stack.enter_context(open_memory_file(folder, part.size, everyone=everyone))
        devices = DevicesPart(self.machine.device_state, os.memfd_create("devices", os.MFD_CLOEXEC))
        stack.callback(os.close, devices.file)
        whole = not self.answers_first
        memory = MemoryPart(part.start, part.size, file, devices, whole_profile=whole)
        return replace(disk, memory=memory)

    def known(self, disk: BlockServerSpec) -> list[Touch]:
        """The profile by which it was resumed: its devices come before all that it reads."""
        devices = None if disk.memory is None else disk.memory.devices
        return merge_touches([] if devices is None else [devices.touch], disk.profile)

    def apply(
        self, spec: GuestSpec, memory: MemoryPart, network: Network, card: Card | None
    ) -> GuestSpec:
        """A guest's description, as that of one which goes on."""
        resume = Resume(self.machine, Path(f"/proc/self/fd/{memory.file.file}"), _not_told_yet)
        wire = _woken_card(network, card)
        waking = Waking(self.machine.suspended, wire, self.host_name, late=self.rehearses)
        return replace(spec, memory=self.machine.memory.length, resume=resume, waking=waking)


def _woken_card(network: Network, card: Card | None) -> WokenCard | None:
    if card is not None:
        return WokenCard(PC_INTERFACE, card.mac, card.mtu, card.addresses)
    return WokenCard(PC_INTERFACE, "", MTU, USER) if network.kind == "user" else None


async def _not_told_yet() -> bytes:
    raise AssertionError("the guest's block server tells it")
