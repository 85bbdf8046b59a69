"""The machine of a state: what must be the same where it goes on (docs/formats/state.md).

A state is an image of a guest that was suspended. Its device has three parts: the disk, the guest's
memory, and the device state, which is what QEMU writes of its devices in a migration stream. A
manifest of format 7 has a field `machine`, which tells how long the parts are, and what the machine
was.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from p2pcloop.errors import FormatError
from p2pcloop.formats.packing import Fields
from p2pcloop.formats.signed import MAX_TIME
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

Accelerator = Literal["kvm", "tcg"]
Network = Literal["none", "user", "lan", "bridge"]

MAX_MEMORY = 1 << 40
MAX_DEVICE_STATE = 1 << 28
"""Bytes of a device state. That of a PC without a screen has 0.4 MB; video memory counts."""

MAX_DEVICES = 64
MAX_FIRMWARE = 16
MAX_QEMU = 128
FIRMWARE_HASH_SIZE = 32

# Types, models and roles become words of a command line or of messages, so they are plain.
_TYPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,1023}", re.ASCII)
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:=+/-]{0,255}", re.ASCII)
_ROLE = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a state's device.

    Attributes:
        start: its first byte on the device, a multiple of 4096.
        length: its exact bytes, at least 1; zeros fill its last block.
    """

    start: int
    length: int

    @property
    def size(self) -> int:
        """Its bytes in whole blocks."""
        return -(-self.length // BLOCK_SIZE) * BLOCK_SIZE

    @property
    def end(self) -> int:
        """The byte after its last block."""
        return self.start + self.size

    @property
    def blocks(self) -> range:
        """The numbers of its blocks."""
        return range(self.start // BLOCK_SIZE, self.end // BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class MachineState:
    """The machine of a state.

    Attributes:
        disk_length: exact bytes of the disk, as the guest sees it.
        memory_length: bytes of the guest's memory, a multiple of 4096.
        device_state_length: exact bytes of the device state.
        type: of the machine, with its version: "pc-q35-7.2".
        cpu: the model of the processor and its features, as `-cpu` takes them.
        accelerator: what ran it.
        qemu: the version of the QEMU that wrote the device state: "7.2.22 (Debian …)".
        suspended: when the guest stopped: seconds since 1970, UTC.
        devices: the devices, as `-device` takes them, in the order of the command line, without
            what is of one host: descriptors and paths.
        firmware: role ("bios") and SHA-256 of each file that firmware was loaded from, in the
            order of the roles.
        network: what the guest's network card led to.
        host_name: the guest's, if its user gave it one; else "".
    """

    disk_length: int
    memory_length: int
    device_state_length: int
    type: str
    cpu: str
    accelerator: Accelerator
    qemu: str
    suspended: int
    devices: tuple[str, ...] = ()
    firmware: tuple[tuple[str, bytes], ...] = ()
    network: Network = "none"
    host_name: str = ""

    @property
    def disk(self) -> Part:
        """The disk, at the start of the device."""
        return Part(0, self.disk_length)

    @property
    def memory(self) -> Part:
        """The guest's memory, in the order of its file (QEMU's memory-backend-file)."""
        return Part(self.disk.end, self.memory_length)

    @property
    def device_state(self) -> Part:
        """What QEMU wrote of the devices, at the end of the device."""
        return Part(self.memory.end, self.device_state_length)

    @property
    def size(self) -> int:
        """Bytes of the whole device, a multiple of 4096."""
        return self.device_state.end

    def check(self) -> None:
        """Check all fields.

        Raises:
            FormatError: one is outside its limits.
        """
        read_machine_state(Fields(self.to_map(), tr("'machine' of a manifest")))

    def to_map(self) -> dict[str, Any]:
        """Return the fields of a manifest's `machine`; default values are absent."""
        fields: dict[str, Any] = {
            "disk": self.disk_length,
            "memory": self.memory_length,
            "device_state": self.device_state_length,
            "type": self.type,
            "cpu": self.cpu,
            "accelerator": self.accelerator,
            "qemu": self.qemu,
            "suspended": self.suspended,
            "network": self.network,
        }
        if self.devices:
            fields["devices"] = list(self.devices)
        if self.firmware:
            fields["firmware"] = dict(self.firmware)
        if self.host_name:
            fields["host_name"] = self.host_name
        return fields


def read_machine_state(fields: Fields) -> MachineState:
    """Check the fields of a manifest's `machine` whole.

    Args:
        fields: all of them are taken.

    Raises:
        FormatError: a field that is absent, unknown or outside its limits.
    """
    machine = MachineState(
        disk_length=fields.integer("disk", 1, MAX_IMAGE_SIZE),
        memory_length=fields.integer("memory", BLOCK_SIZE, MAX_MEMORY),
        device_state_length=fields.integer("device_state", 1, MAX_DEVICE_STATE),
        type=_matching(fields, "type", _TYPE),
        cpu=_matching(fields, "cpu", _CPU),
        accelerator=_one_of(fields, "accelerator", get_args(Accelerator)),
        qemu=fields.text("qemu", MAX_QEMU),
        suspended=fields.integer("suspended", 0, MAX_TIME),
        devices=_read_devices(fields),
        firmware=_read_firmware(fields),
        network=_one_of(fields, "network", get_args(Network)),
        host_name=_matching(fields, "host_name", _HOST_NAME) if "host_name" in fields else "",
    )
    fields.end()
    if machine.memory_length % BLOCK_SIZE:
        raise FormatError(
            tr(
                "the memory of a state is not a multiple of {block_size} bytes",
                block_size=BLOCK_SIZE,
            )
        )
    return machine


def _matching(fields: Fields, key: str, pattern: re.Pattern[str]) -> str:
    value = fields.text(key, 1 << 10)
    return _checked(value, tr("field {key!r} of the machine of a state", key=key), pattern)


def _checked(value: object, what: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise FormatError(tr("{what} is not of the form that it has", what=what))
    return value


def _one_of(fields: Fields, key: str, known: tuple[Any, ...]) -> Any:  # noqa: ANN401  a Literal
    value = fields.text(key, 32)
    if value not in known:
        raise FormatError(
            tr(
                "field {key!r} of the machine of a state is {what!r}, not one of {known}",
                key=key,
                what=value,
                known=", ".join(known),
            ),
            hint="a newer p2pcloop may read it",
        )
    return value


def _read_devices(fields: Fields) -> tuple[str, ...]:
    if "devices" not in fields:
        return ()
    items = fields.items("devices", MAX_DEVICES)
    return tuple(
        _checked(item, tr("a device of the machine of a state"), _DEVICE) for item in items
    )


def _read_firmware(fields: Fields) -> tuple[tuple[str, bytes], ...]:
    if "firmware" not in fields:
        return ()
    inner = fields.map("firmware")
    roles = inner.keys(MAX_FIRMWARE)
    for role in roles:
        _checked(role, tr("the role of a firmware of a state"), _ROLE)
    return tuple((role, inner.data(role, FIRMWARE_HASH_SIZE)) for role in sorted(roles))
