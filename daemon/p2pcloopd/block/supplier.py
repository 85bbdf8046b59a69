"""Fetches what a device lacks from p2pcloopd."""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any, Protocol

import trio

from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.protocol.waiting import describe_cause, describe_slow, describe_waiting
from p2pcloop.words import tr
from p2pcloopd.block.fetched_file import FetchedFile
from p2pcloopd.block.timeline_file import TimelineFile
from p2pcloopd.block.waiting_file import WaitingFile
from p2pcloopd.block.waits import Waits

_log = logging.getLogger(__name__)

FULL_RETRY_SECONDS = 1.0
"""Seconds between tries while the disk of the home is full: no event reports free space."""

_FULL = (errno.ENOSPC, errno.EDQUOT)

_REPORT_FULL_SECONDS = 60.0
_REPORT_SECONDS = 10.0
"""Seconds between messages about a slow line: the terminal belongs to the guest."""


_MAX_ARRIVED = 4096
"""Ranges of which it is known that they arrived. One that comes twice, since it was read ahead and
asked for, does so within moments."""


class Caller(Protocol):
    """A connection to p2pcloopd that outlives it (`ReconnectingClient`)."""

    async def call(
        self, op: str, on_event: Callable[[str, dict[str, Any]], None] | None = None, **args: object
    ) -> dict[str, Any]:
        """Ask for an operation and wait for its result."""


@dataclass(frozen=True, slots=True)
class _Asking:
    """A range that p2pcloopd was asked for.

    Attributes:
        instead: ranges that have to arrive yet before it is not needed any more.
        scope: cancels the call if it arrives another way, or all of these do.
    """

    instead: set[ByteRange] = field(default_factory=set)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Supplier:
    """Fetches ranges from p2pcloopd; a range that several reads want is asked for once.

    Attributes:
        client: the connection to p2pcloopd.
        waits: how long each range took to arrive.
    """

    def __init__(
        self,
        client: Caller,
        accept: Callable[[ByteRange, bytes], None],
        waiting: WaitingFile | None = None,
        fetched: FetchedFile | None = None,
        timeline: TimelineFile | None = None,
    ) -> None:
        """Ask for nothing yet.

        Args:
            accept: given each range with its bytes, as `StoredImage.accept`.
            waiting: told what the guest waits for while no bytes arrive.
            fetched: told how many bytes arrived, each range once.
            timeline: told the same, and of each wait.
        """
        self._waiting = waiting or WaitingFile(None)
        self._fetched = fetched or FetchedFile(None)
        self._timeline = timeline or TimelineFile(None)
        self._arrived: dict[ByteRange, None] = {}
        self.client = client
        self._accept = accept
        self._under_way: dict[ByteRange, _Asking] = {}
        self.waits = Waits()
        self._reported = self._reported_full = -math.inf
        self._reported_waiting = False

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`."""
        if len(missing.ranges) == 1:  # as a rule; a task for it would only cost time
            await self._fetch(missing.ranges[0])
            return
        errors: list[P2pcloopError] = []

        async def fetch(wanted: ByteRange) -> None:
            try:
                await self._fetch(wanted)
            except P2pcloopError as err:
                errors.append(err)

        async with trio.open_nursery() as nursery:
            for wanted in missing.ranges:
                nursery.start_soon(fetch, wanted)
                # In their order: tasks that begin at once do so in any. A chain is decoded from
                # its first chunk on, and others may wait for that one already.
                await trio.lowlevel.checkpoint()
        if errors:
            raise errors[0]

    def deliver(self, wanted: ByteRange, data: bytes) -> None:
        """Accept a range that arrived although `supply` had not asked for it."""
        self._deliver(wanted, data)
        if wanted in self._under_way:
            self._under_way[wanted].scope.cancel()

    async def _fetch(self, wanted: ByteRange) -> None:
        if wanted in self._under_way:
            # Each waiting read looks again afterwards, and asks itself if this one failed.
            await self._under_way[wanted].ended.wait()
            return
        asking = self._under_way[wanted] = _Asking(set(wanted.instead))
        started = time.monotonic()
        try:
            with asking.scope:
                self._deliver(wanted, await self._read(wanted))
            self.waits.add(time.monotonic() - started)
            self._timeline.add_wait(started, wanted.length)
        finally:
            del self._under_way[wanted]
            asking.ended.set()

    def _deliver(self, wanted: ByteRange, data: bytes) -> None:
        self._accept(wanted, data)
        for asking in self._under_way.values():
            if wanted in asking.instead:
                asking.instead.remove(wanted)
                if not asking.instead:
                    asking.scope.cancel()
        if wanted not in self._arrived:  # one that was read ahead may be asked for meanwhile, too
            self._arrived[wanted] = None
            if len(self._arrived) > _MAX_ARRIVED:
                del self._arrived[next(iter(self._arrived))]
            self._fetched.add(wanted.length)
            self._timeline.add_bytes(wanted.length)
        self._reported_waiting = False
        self._waiting.clear()

    async def _read(self, wanted: ByteRange) -> bytes:
        report = partial(self._report, wanted.length)
        return b"".join([await self._read_part(part, report) for part in wanted.parts()])

    async def _read_part(
        self, part: ByteRange, report: Callable[[str, dict[str, Any]], None]
    ) -> bytes:
        """Read until there is room: a guest's file system must get no I/O error because a disk is
        full for a while, and p2pcloopd tries anew each time."""
        while True:
            try:
                answer = await self.client.call(
                    "read",
                    report,
                    torrent=part.torrent,
                    offset=part.offset,
                    length=part.length,
                    heal=part.heal,
                )
            except StorageError as err:
                if err.errno not in _FULL:
                    raise
                self._report_full(err)
                await trio.sleep(FULL_RETRY_SECONDS)
            else:
                data: bytes = answer["data"]
                return data

    def _report_full(self, error: StorageError) -> None:
        self._waiting.report(tr("room: {error}", error=error))
        if time.monotonic() - self._reported_full >= _REPORT_FULL_SECONDS:
            self._reported_full = time.monotonic()
            _log.warning("the guest waits for room: %s; %s", error, error.hint or "free some")

    def _report(self, length: int, event: str, fields: dict[str, Any]) -> None:
        """Report to the user that the guest waits: once if no bytes arrive, however many reads wait
        for them; every now and then how fast they arrive. Other programs have the newest cause."""
        if event == "waiting":
            self._waiting.report(describe_cause(fields), fields["seconds"])
            if not self._reported_waiting:
                self._reported_waiting = True
                _log.warning("the guest waits: %s", describe_waiting(fields))
        elif event == "slow" and time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            _log.warning("the guest waits for %s", describe_slow(fields, length))
