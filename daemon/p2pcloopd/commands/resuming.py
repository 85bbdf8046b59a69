"""What a state is resumed with: its memory, its devices, and what its guest is told."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.frozen import dataclass
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.targets import DeviceTarget
from p2pcloop.store.home import Home
from p2pcloopd.block.memory_file import open_memory_file
from p2pcloopd.block.spec import BlockServerSpec, MemoryPart
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
        device_state: what QEMU wrote of its devices.
        host_name: that it gets; "" for the one that it has.
    """

    machine: MachineState
    device_state: bytes
    host_name: str

    def with_memory(self, disk: BlockServerSpec, folder: Path, stack: ExitStack) -> BlockServerSpec:
        """What serves a guest's disk, as what serves its memory, too.

        Args:
            folder: that nobody else can enter; it has a file while this begins.
            stack: holds the file that the guest's machine gets.

        Raises:
            P2pcloopError: as of `open_memory_file`.
        """
        part = self.machine.memory
        # Of root's guests the machine runs as another user.
        everyone = os.geteuid() == 0
        file = stack.enter_context(open_memory_file(folder, part.size, everyone=everyone))
        return replace(disk, memory=MemoryPart(part.start, part.size, file))

    def apply(
        self, spec: GuestSpec, memory: MemoryPart, network: Network, card: Card | None
    ) -> GuestSpec:
        """A guest's description, as that of one which goes on."""
        resume = Resume(self.machine, Path(f"/proc/self/fd/{memory.file.file}"), self.device_state)
        waking = Waking(self.machine.suspended, _woken_card(network, card), self.host_name)
        return replace(spec, memory=self.machine.memory.length, resume=resume, waking=waking)


def _woken_card(network: Network, card: Card | None) -> WokenCard | None:
    if card is not None:
        return WokenCard(PC_INTERFACE, card.mac, card.mtu, card.addresses)
    return WokenCard(PC_INTERFACE, "", MTU, USER) if network.kind == "user" else None


def fetch_resuming(target: StoredRef, home: Home, host_name: str) -> Resuming:
    """Bring here what a machine needs before it can begin.

    Raises:
        P2pcloopError: it cannot be read, or fetched.
    """
    machine = target.signed.manifest.machine
    assert machine is not None, "a state"
    with ExitStack() as stack:
        opened = open_stored(target, home, stack)
        device = DeviceTarget(ImageDevice(opened.image), opened.supply, ())
        blocks = machine.device_state.blocks
        state = device.read(blocks.start, len(blocks))[: machine.device_state.length]
    return Resuming(machine, state, host_name)
