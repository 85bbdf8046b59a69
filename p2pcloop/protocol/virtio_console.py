"""The virtio console device with several ports (virtio 1.2, section 5.3), sans-io.

Port n has a queue to the guest and one from it; port 0 has queues 0 and 1, and queues 2 and 3 carry
control messages. A port that is not declared a console is a file of bytes in the guest
(/dev/vportNpM, its name in /sys/class/virtio-ports), without a terminal; each side notices when the
other closes it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

from p2pcloop.frozen import dataclass
from p2pcloop.protocol.virtqueue import VirtqueueError
from p2pcloop.words import tr

DEVICE_ID = 3
"""Of a console (virtio 1.2, section 5.3.1)."""

F_MULTIPORT = 1 << 1
F_VERSION_1 = 1 << 32

CONTROL_TO_GUEST, CONTROL_FROM_GUEST = 2, 3
"""Queues of control messages."""

_CONFIG = struct.Struct("<HHII")  # columns, rows, ports, emergency write
_CONTROL = struct.Struct("<IHH")

MAX_CONTROL = 4096
"""Bytes of a control message of the guest's at most."""


class Event(enum.IntEnum):
    """The kinds of control messages (5.3.6.2)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(frozen=True, slots=True)
class Control:
    """A control message.

    Attributes:
        port: its number; ignored for DEVICE_READY.
        event: an `Event`, or an unknown number.
        value: 1 for yes, 0 for no.
        name: of PORT_NAME.
    """

    port: int
    event: int
    value: int = 1
    name: str = ""

    def encode(self) -> bytes:
        """The bytes of the message for the guest."""
        return _CONTROL.pack(self.port, self.event, self.value) + self.name.encode()


def parse_control(data: bytes) -> Control:
    """Parse a message of the guest.

    Raises:
        VirtqueueError: it is too short or too long.
    """
    if not _CONTROL.size <= len(data) <= MAX_CONTROL:
        raise VirtqueueError(tr("a control message of {data_count} bytes", data_count=len(data)))
    return Control(*_CONTROL.unpack_from(data))


def config_space(ports: int) -> bytes:
    """The device's configuration: its number of ports."""
    return _CONFIG.pack(0, 0, ports, 0)


def queue_count(ports: int) -> int:
    """How many queues a device with this number of ports has."""
    return 2 * (ports + 1)


def port_of(queue: int) -> tuple[int, bool]:
    """The port of a queue that is no control queue, and whether it leads to the guest."""
    number = queue // 2
    return max(0, number - 1), not queue % 2


def fill(views: Sequence[memoryview], data: bytes) -> int:
    """Copy as much of `data` as there is room for; return the number of bytes."""
    done = 0
    for view in views:
        piece = data[done : done + len(view)]
        view[: len(piece)] = piece
        done += len(piece)
    return done
