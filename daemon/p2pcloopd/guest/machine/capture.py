"""A guest that is stopped, and all that it needs to go on elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pcloop.formats.machine_state import MachineState, Network
from p2pcloopd.guest.machine.identity import Host, PortPlace, describe_machine
from p2pcloopd.guest.machine.qemu_command import Pc
from p2pcloopd.guest.machine.qemu_memory import GuestMemory


class Capture:
    """A guest that is stopped. It goes on when the capture is left, unless it was ended.

    Attributes:
        device_state: what QEMU wrote of its devices.
        memory: the guest's; it can be read until the capture is left (`copy_memory` keeps it).
        suspended: when the guest was stopped: seconds since 1970.
    """

    def __init__(
        self,
        pc: Pc,
        ports: Sequence[PortPlace],
        host: Host,
        device_state: bytes,
        memory: GuestMemory,
        suspended: int,
        end: Callable[[], None],
    ) -> None:
        self.device_state = device_state
        self.memory = memory
        self.suspended = suspended
        self._pc = pc
        self._ports = tuple(ports)
        self._host = host
        self._end = end

    def machine(
        self, *, disk_length: int, network: Network = "none", host_name: str = ""
    ) -> MachineState:
        """Return what the guest ran on, as its state tells it; see `describe_machine`."""
        return describe_machine(
            self._pc,
            self._ports,
            self._host,
            self.device_state,
            disk_length=disk_length,
            suspended=self.suspended,
            network=network,
            host_name=host_name,
        )

    def end(self) -> None:
        """End the guest here: its state is safe."""
        self._end()
