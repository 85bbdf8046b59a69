"""The memory and the queues that a vhost-user front end sets up, and their changes.

Source: QEMU's `docs/interop/vhost-user.rst`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from p2pcloop.frozen import dataclass
from p2pcloop.protocol.vhost_user import MAX_REGIONS, Message, RefusedError
from p2pcloop.words import tr

_MEMORY = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a file that is guest memory; all in bytes."""

    guest_address: int
    size: int
    user_address: int
    file_offset: int
    fd: int


@dataclass(slots=True)
class Vring:
    """One queue, as the front end set it up.

    Attributes:
        size: entries.
        base: the available index to start from, or at which it was stopped (set by the owner).
        addresses: descriptor table, used ring, available ring; the front end's addresses.
        started: from the moment it has a kick descriptor until GET_VRING_BASE.
        enabled: by SET_VRING_ENABLE, or always if there are no protocol features.
        kick, call, err: descriptors; None if it has none.
    """

    size: int = 0
    base: int = 0
    addresses: tuple[int, int, int] | None = None
    started: bool = False
    enabled: bool = False
    kick: int | None = None
    call: int | None = None
    err: int | None = None

    @property
    def running(self) -> bool:
        """Whether it is to be served."""
        return self.started and self.enabled


@dataclass(frozen=True, slots=True)
class MemoryChanged:
    """Effect: `Session.regions` are other ones."""


@dataclass(frozen=True, slots=True)
class RingChanged:
    """Effect: serve the ring anew if it is `running`, else stop and note its `base`."""

    index: int


Effect = MemoryChanged | RingChanged | None


def parse_regions(message: Message) -> tuple[Region, ...]:
    """Parse a SET_MEM_TABLE.

    Raises:
        RefusedError: it is not whole, or its regions overlap or lie beyond all addresses.
    """
    payload = message.payload
    count = _MEMORY.unpack_from(payload)[0] if len(payload) >= _MEMORY.size else 0
    # UML sends a table of full length, for any number of regions.
    if not 0 < count <= MAX_REGIONS or len(payload) < _MEMORY.size + count * _REGION.size:
        raise RefusedError(
            tr(
                "a memory table of {count} regions in {payload_count} bytes",
                count=count,
                payload_count=len(payload),
            )
        )
    if len(message.fds) != count:
        raise RefusedError(
            tr(
                "{count} regions of memory with {fds_count} descriptors",
                count=count,
                fds_count=len(message.fds),
            )
        )
    fields = _REGION.iter_unpack(payload[_MEMORY.size : _MEMORY.size + count * _REGION.size])
    regions = tuple(
        Region(guest, size, user, offset, fd)
        for (guest, size, user, offset), fd in zip(fields, message.fds, strict=True)
    )
    _check_regions(regions)
    return regions


def _check_regions(regions: Sequence[Region]) -> None:
    end = 0
    for region in sorted(regions, key=lambda r: r.guest_address):
        if not region.size or region.guest_address < end:
            raise RefusedError("regions of memory that are empty or overlap")
        end = region.guest_address + region.size
        if max(end, region.user_address + region.size, region.file_offset + region.size) > 1 << 63:
            raise RefusedError("a region of memory beyond all addresses")
