"""The machines that have their disk here, by the hardware addresses of their network cards.

A machine asks for the export `IMAGE/MAC/BOOT`, and for `IMAGE/MAC/BOOT/again` when it connects anew
(resources/nbd_root.c). IMAGE is the image that it started with: it never reads another one's
blocks. BOOT is new at each start, so that two machines with one address are told apart from one
that comes back. IMAGE ends with `-keep` where the node keeps the changes: a machine that has
written to its disk must not go on with the bare image.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from p2pcloop.errors import BusyError, P2pcloopError
from p2pcloop.protocol.nbd_export import Export, Exports
from p2pcloop.words import tr
from p2pcloopd.block.backend import Backend

_NAME = re.compile(
    r"(?P<image>[0-9a-f]+(-keep)?)/(?P<mac>[0-9a-f]{2}(:[0-9a-f]{2}){5})/(?P<boot>[0-9a-f-]{36})"
    r"(?P<again>/again)?"
)

MAX_PAYLOAD = 4 << 20
"""Bytes of the largest READ or WRITE. Linux sends 1.25 MiB at most (BLK_DEF_MAX_SECTORS_CAP),
unless its administrator wants more."""

_KEEPS = "-keep"

_NO_NAME = "this server gives disks to machines that start here, and to no others"


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of an export's name.

    Attributes:
        again: it is not the first connection of this boot.
    """

    image: str
    mac: str
    boot: str
    again: bool


def disk_name(image: str, *, keeps: bool) -> str:
    """The first part of exports' names.

    Args:
        image: digits of the image's id.
        keeps: the node keeps what machines change.
    """
    return image + _KEEPS if keeps else image


def parse_export(name: bytes) -> Asked | None:
    """Read the name of an export; None where it is none of a machine."""
    found = _NAME.fullmatch(name.decode("utf-8", "replace"))
    if found is None:
        return None
    return Asked(found["image"], found["mac"], found["boot"], found["again"] is not None)


class Changes(Protocol):
    """What the node keeps for machines (kept.py)."""

    def refusal(self, mac: str, boot: str, *, again: bool) -> str | None:
        """Why a machine gets no disk now; None if it does."""

    async def backend(self, mac: str, boot: str) -> Backend:
        """The disk of a machine."""

    def lost(self, mac: str, boot: str) -> None:
        """The connection of a machine broke."""

    async def close(self, mac: str) -> None:
        """Make what a machine changed durable, and close it."""

    async def close_all(self) -> None:
        """The same of all machines."""


@dataclass(slots=True)
class _Connected:
    boot: str
    leave: Callable[[], None]
    orderly: bool = False
    told: bool = False
    """Another machine has asked for its disk, and the user knows it."""


@dataclass(slots=True)
class Machines:
    """Gives each machine its disk (`p2pcloopd.block.nbd_server.Served`), and is the list of them.

    Attributes:
        image: what their exports begin with (`disk_name`).
        backend: the disk, which no machine changes.
        told: called with a line when a machine comes or goes.
        kept: the changes of each machine; None where they keep these in their memory.
    """

    image: str
    backend: Backend
    told: Callable[[str], None]
    kept: Changes | None = None
    names: tuple[str, ...] = ()
    tls: bool = False
    _connected: dict[str, _Connected] = field(default_factory=dict)
    _gone: trio.MemorySendChannel[str] = field(init=False)
    _left: trio.MemoryReceiveChannel[str] = field(init=False)

    def __post_init__(self) -> None:
        self._gone, self._left = trio.open_memory_channel[str](math.inf)

    @property
    def exports(self) -> Exports:
        """See `Served.exports`."""
        return self

    @property
    def count(self) -> int:
        """How many machines have their disk."""
        return len(self._connected)

    def find(self, name: bytes) -> Export | str:
        """See `Exports.find`."""
        asked = parse_export(name)
        if asked is None:
            return _NO_NAME
        if asked.image != self.image:
            if asked.image.removesuffix(_KEEPS) == self.image.removesuffix(_KEEPS):
                return (
                    "the node keeps no changes now, and did when this machine started: serve the"
                    " image with --keep, or start the machine again"
                    if self.kept is None
                    else "the node keeps changes now, and did not when this machine started: serve"
                    " the image without --keep, or start the machine again"
                )
            return (
                "the node serves another image, or another version of it, than this machine"
                " started with: start the machine again"
            )
        there = self._connected.get(asked.mac)
        if there is not None and there.boot != asked.boot:
            if not there.told:
                there.told = True
                self.told(
                    tr(
                        "two machines have the network card {mac}: the second one has to wait",
                        mac=asked.mac,
                    )
                )
            return tr(
                "another machine with the network card {mac} has its disk already: change the"
                " address of one of them, or turn the other one off",
                mac=asked.mac,
            )
        if self.kept is not None:
            refusal = self.kept.refusal(asked.mac, asked.boot, again=asked.again)
            if refusal is not None:
                return refusal
        size = self.backend.device.size
        return Export(size, read_only=self.kept is None, max_payload=MAX_PAYLOAD)

    @asynccontextmanager
    async def attach(self, name: bytes, leave: Callable[[], None]) -> AsyncIterator[Backend]:
        """See `Served.attach`. A connection takes the place of an older one of the same boot: its
        machine has lost that."""
        asked = parse_export(name)
        refusal = self.find(name)
        if asked is None or isinstance(refusal, str):
            raise BusyError(str(refusal))
        if (before := self._connected.get(asked.mac)) is not None:
            before.leave()
        own = self._connected[asked.mac] = _Connected(asked.boot, leave)
        try:
            backend = await self._backend(asked)
            self.told(f"{asked.mac} {'has its disk again' if asked.again else 'has its disk'}")
            try:
                yield backend
            finally:
                self._ended(asked, own)
        finally:
            if self._connected.get(asked.mac) is own:
                del self._connected[asked.mac]
                self._gone.send_nowait(asked.mac)

    def leaves(self, name: bytes) -> None:
        """See `Served.leaves`."""
        asked = parse_export(name)
        if asked is not None and (there := self._connected.get(asked.mac)) is not None:
            there.orderly = there.boot == asked.boot

    def _ended(self, asked: Asked, own: _Connected) -> None:
        """A machine's connection has ended."""
        if self._connected.get(asked.mac) is not own:
            return
        self.told(tr("{mac} has gone", mac=asked.mac))
        if self.kept is not None and not own.orderly:
            self.kept.lost(asked.mac, asked.boot)

    async def _backend(self, asked: Asked) -> Backend:
        if self.kept is None:
            return self.backend
        try:
            return await self.kept.backend(asked.mac, asked.boot)
        except P2pcloopError as err:
            self.told(tr("{mac} gets no disk: {err}", mac=asked.mac, err=err))
            raise

    async def close_left(self) -> None:
        """Close the changes of machines that have gone, until cancelled."""
        async for mac in self._left:
            if self.kept is not None and mac not in self._connected:
                await self.kept.close(mac)

    async def close_all(self) -> None:
        """Close the changes of all machines, once none is served any more."""
        if self.kept is not None:
            await self.kept.close_all()
