"""The state of a machine's devices: taken from a QEMU that is stopped, given to one that waits.

It is what QEMU sends of a machine whose memory is shared with the other end (migration capability
x-ignore-shared): all but the guest's memory. QEMU 7.2's own documentation: docs/devel/migration.rst
and qapi/migration.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import GuestError
from p2pcloop.formats.device_stream import leaves_out, with_firmware, without_firmware
from p2pcloop.protocol.qmp import MachineEvent
from p2pcloop.words import tr
from p2pcloopd.guest.machine.qmp_client import Qmp

MAX_DEVICE_STATE = 64 << 20
"""Bytes. A PC without a screen has 0.4 MB, one with UEFI 5 MB more."""

_NAME = "state"
_CHUNK = 1 << 16
_SECONDS = 60.0
"""How long QEMU may take; it takes some hundredths."""

_CAPABILITIES = ("events", "x-ignore-shared")
_UNBOUNDED = 1 << 40
_OVER = ("completed", "failed", "cancelled")
_RESTS = ("none", *_OVER)
_PAUSE = 0.01


class DeviceStates:
    """Takes and gives device states over a monitor."""

    def __init__(self, qmp: Qmp, firmware: Path) -> None:
        """`firmware` is the file that the machine has loaded: its pages are left out."""
        self._qmp = qmp
        self._firmware = firmware
        self._status = ""
        self._changed = trio.Event()

    def take_event(self, event: MachineEvent) -> None:
        """Note how far QEMU is."""
        if event.name == "MIGRATION":
            self._status = str(event.data.get("status"))
            self._changed.set()
            self._changed = trio.Event()

    async def take(self) -> bytes:
        """Return the state of a machine that is stopped. It can go on afterwards.

        Raises:
            GuestError: QEMU refuses, fails, ends, or does not come to an end.
        """
        await self._prepare()
        read_end, write_end = os.pipe()
        async with trio.lowlevel.FdStream(read_end) as stream:
            try:
                await self._qmp.execute("getfd", {"fdname": _NAME}, write_end)
            finally:
                os.close(write_end)
            try:
                with _limited(tr("to save its devices")):
                    await self._qmp.execute("migrate", {"uri": f"fd:{_NAME}"})
                    state = await _read(stream)
                    await self._finish(tr("save its devices"))
            except BaseException:
                await self._give_up()
                raise
        # It searches all of a screen's memory for each page: seconds, where none is found.
        return await trio.to_thread.run_sync(without_firmware, state, await self._content())

    async def give(self, state: bytes) -> None:
        """Give a machine that waits (`-incoming defer`) the state of another one.

        Raises:
            FormatError: pages of firmware that it lacks are not as the format says.
            MismatchError: that firmware is not here.
            GuestError: QEMU refuses it, fails, ends, or does not come to an end.
        """
        if leaves_out(state):
            state = await trio.to_thread.run_sync(with_firmware, state, await self._content())
        await self._prepare()
        file = _file_of(state)
        try:
            await self._qmp.execute("getfd", {"fdname": _NAME}, file)
        finally:
            os.close(file)
        with _limited(tr("to load the state of its devices")):
            await self._qmp.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})
            await self._finish(tr("load the state of its devices"))

    async def _content(self) -> bytes:
        """The content of the firmware's file; nothing if it cannot be read."""
        with suppress(OSError):
            return await trio.to_thread.run_sync(self._firmware.read_bytes)
        return b""

    async def _prepare(self) -> None:
        wanted = [{"capability": name, "state": True} for name in _CAPABILITIES]
        await self._qmp.execute("migrate-set-capabilities", {"capabilities": wanted})
        # By default it sends in portions of a tenth of a second.
        await self._qmp.execute("migrate-set-parameters", {"max-bandwidth": _UNBOUNDED})
        # What is still told of an earlier one has come by now.
        self._status = ""

    async def _finish(self, what: str) -> None:
        """Return once it is over.

        Raises:
            GuestError: it failed.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_at_end, nursery.cancel_scope)
            while self._status not in _OVER:
                await self._changed.wait()
            nursery.cancel_scope.cancel()
        if self._qmp.ended.is_set():
            raise GuestError(tr("QEMU has ended: it was to {what}", what=what))
        if self._status != "completed":
            told: Mapping[str, Any] = await self._qmp.execute("query-migrate")
            why = told.get("error-desc", self._status)
            raise GuestError(tr("QEMU does not {what}: {why}", what=what, why=why))

    async def _give_up(self) -> None:
        """Return once QEMU sends no more: before that it lets no guest go on."""
        with trio.move_on_after(_SECONDS, shield=True), suppress(GuestError):
            await self._qmp.execute("migrate_cancel")
            while True:
                told: Mapping[str, Any] = await self._qmp.execute("query-migrate")
                if told.get("status", "none") in _RESTS:
                    return
                await trio.sleep(_PAUSE)

    async def _stop_at_end(self, waiting: trio.CancelScope) -> None:
        await self._qmp.ended.wait()
        waiting.cancel()


@contextmanager
def _limited(what: str) -> Iterator[None]:
    """Bound what is done inside.

    Raises:
        GuestError: it took too long.
    """
    with trio.move_on_after(_SECONDS) as limit:
        yield
    if limit.cancelled_caught:
        raise GuestError(
            tr("QEMU takes longer than {seconds:g} s {what}", seconds=_SECONDS, what=what)
        )


def _file_of(state: bytes) -> int:
    """Return the descriptor of a file without a name that has these bytes."""
    fd = os.memfd_create("device-state", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(state)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


async def _read(stream: trio.lowlevel.FdStream) -> bytes:
    """Return all that comes, within the limit."""
    state = bytearray()
    while part := await stream.receive_some(_CHUNK):
        state += part
        if len(state) > MAX_DEVICE_STATE:
            raise GuestError(
                tr(
                    "QEMU's devices have more than {max_device_state} MiB of state: this guest"
                    " cannot be suspended",
                    max_device_state=MAX_DEVICE_STATE >> 20,
                )
            )
    return bytes(state)
