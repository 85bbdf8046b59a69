"""The operations of a guest's control socket that suspend it (docs/formats/control.md).

The guest's own process captures the state; the command that asked for it makes an image of that,
and says when it is served. Until then the guest only rests: if the command fails or goes away, it
goes on as if nothing had been.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import BusyError, FormatError, GuestError, NotHereError, storage_error
from p2pcloop.formats.packing import Fields
from p2pcloop.frozen import dataclass
from p2pcloop.units import MAX_IMAGE_SIZE
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.channel.waking import Waking, wake_up
from p2pcloopd.guest.machine.capture import Capture
from p2pcloopd.guest.machine.qemu_memory import (
    FileMemory,
    GuestMemory,
    OwnedMemory,
    copy_memory,
)
from p2pcloopd.guest.result import StateName
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import CopyDisk, GuestSpec

_MAX_PATH = 4096
_MAX_STATE = 256
_MAX_VERSION = (1 << 32) - 1
_MAX_HOST_NAME = 63
_MAX_NETWORK = 16

_DEVICE_STATE = "device-state"


@dataclass(frozen=True, slots=True)
class _Order:
    """A suspend, as it was asked for.

    Attributes:
        folder: gets the files.
        goes_on: the guest does, once it is captured.
        facts: what this process does not know of the machine.
    """

    folder: Path
    goes_on: bool
    facts: dict[str, Any]

    @classmethod
    def read(cls, fields: Fields) -> _Order:
        folder = Path(os.fsdecode(fields.blob("folder", _MAX_PATH)))
        goes_on = fields.boolean("goes_on")
        facts = {
            "disk_length": fields.integer("disk_length", 1, MAX_IMAGE_SIZE),
            "network": fields.text("network", _MAX_NETWORK),
            "host_name": fields.text("host_name", _MAX_HOST_NAME),
        }
        fields.end()
        if not folder.is_absolute():
            raise FormatError("the folder of a suspend is not absolute")
        return cls(folder, goes_on, facts)


class Suspends:
    """Suspends of one guest, one at a time."""

    def __init__(
        self,
        guest: RunningGuest,
        channel: Channel,
        spec: GuestSpec,
        nursery: trio.Nursery,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Suspend nothing yet.

        Args:
            nursery: of what is done for the guest while it runs.
            clock: seconds of Unix time.
        """
        self._guest = guest
        self._channel = channel
        self._spec = spec
        self._nursery = nursery
        self._clock = clock
        self._served: trio.Event | None = None
        self._state: StateName | None = None

    async def perform(self, call: Call, fields: Fields) -> dict[str, Any]:
        """Carry out `suspend` or `suspend_end`.

        Raises:
            P2pcloopError: the client gets it.
        """
        if call.op == "suspend_end":
            self._end(fields)
            return {}
        order = _Order.read(fields)
        if self._served is not None:
            raise BusyError("the guest is being suspended by another command")
        self._check()
        self._served = trio.Event()
        try:
            await self._suspend(call, order, self._served)
        finally:
            self._served = None
        return {}

    def _end(self, fields: Fields) -> None:
        """Note that the state is served, and what it is called."""
        state = fields.text("state", _MAX_STATE), fields.integer("version", 1, _MAX_VERSION)
        fields.end()
        if self._served is None:
            raise NotHereError("this guest is not being suspended")
        self._state = state
        self._served.set()

    def _check(self) -> None:
        """Refuse a guest of which a part is elsewhere.

        Raises:
            GuestError: it is one.
        """
        if self._spec.display is not None:
            raise GuestError(
                "a guest with a display cannot be suspended: its programs draw on a server of this"
                " machine",
                hint="one with a VNC server in its image can: boot it with --net user and --port",
            )
        if self._spec.more_disks:
            raise GuestError(
                "a guest that keeps changed files on a second disk cannot be suspended",
                hint="boot it with --overlay-mode block, where its image can be written",
            )

    async def _suspend(self, call: Call, order: _Order, served: trio.Event) -> None:
        copy_disk = self._spec.copy_disk
        if copy_disk is None:
            raise GuestError("the guest's changes cannot be copied")
        begun = self._clock()
        ended = refused = False
        async with AsyncExitStack() as kept:
            try:
                async with self._channel.resting(), self._guest.captured() as capture:
                    facts = await _keep(capture, order, copy_disk, kept)
                    if not order.goes_on:
                        await self._wait_served(call, facts, served)
                        capture.end()
                        ended = True
            except BusyError:
                refused = True  # before the guest was stopped
                raise
            finally:
                if not (ended or refused):
                    self._nursery.start_soon(wake_up, self._channel, Waking(begun), _say_nothing)
            if not ended:
                await self._wait_served(call, facts, served)

    async def _wait_served(self, call: Call, facts: dict[str, Any], served: trio.Event) -> None:
        await call.emit("captured", **facts)
        await served.wait()
        self._guest.state = self._state


async def _keep(
    capture: Capture, order: _Order, copy_disk: CopyDisk, kept: AsyncExitStack
) -> dict[str, Any]:
    """Keep what was captured in files; return where.

    Args:
        kept: closes them.
    """
    if isinstance(capture.memory, FileMemory) and not order.goes_on:
        memory = capture.memory
    else:
        memory = await trio.to_thread.run_sync(_copied, capture.memory)
        kept.callback(memory.close)
    overlay = await copy_disk(order.folder)
    try:
        (order.folder / _DEVICE_STATE).write_bytes(capture.device_state)
    except OSError as err:
        raise storage_error(tr("cannot write in {path}", path=order.folder), err) from err
    return {
        "overlay": os.fsencode(overlay),
        "device_state": os.fsencode(order.folder / _DEVICE_STATE),
        "memory": f"/proc/{os.getpid()}/fd/{memory.fd}",
        "whole": memory.is_whole,
        "machine": capture.machine(**order.facts).to_map(),
    }


def _copied(memory: GuestMemory) -> OwnedMemory:
    try:
        return copy_memory(memory)
    except OSError as err:
        raise storage_error("cannot copy the guest's memory", err) from err


def _say_nothing(_said: str) -> None:
    """The guest goes on at once: its user need not know."""
