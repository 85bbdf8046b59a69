"""Opening stored images for commands that read them from end to end, without trio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from p2pcloop.client.control_client import ControlClient, OnEvent
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.invocation import running_command
from p2pcloop.client.refs import report_waiting
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease


class Source:
    """A stored image, with a connection to p2pcloopd, which fetches missing ranges."""

    def __init__(self, ref: StoredRef, home: Home) -> None:
        """Take a lease on the image; read nothing yet.

        Raises:
            UsageError, MismatchError: the image is private; see `StoredRef.check_secret`.
        """
        self._client: ControlClient = ref.client
        self._spill = home.tmp
        # Unless it is closed, it is held until this process ends.
        self._lease = Lease(home, ref.signed.id, running_command())
        self._stored = StoredImage.of_home(ref.signed.manifest, home, ref.secret)

    def open(self) -> MergedImage:
        """Open the image; fetch headers and maps that are not here.

        Raises:
            P2pcloopError: they cannot be fetched, or p2pcloopd went away.
        """
        while True:
            try:
                return self._stored.open(spill=self._spill)
            except Missing as missing:
                self.supply(missing)

    def close(self) -> None:
        """End the lease; the opened image is closed by itself."""
        self._lease.close()

    def supply(self, missing: Missing, on_event: OnEvent = report_waiting) -> None:
        """Fetch ranges, as long as it takes; `on_event` is called with p2pcloopd's events.

        Raises:
            P2pcloopError: they cannot be fetched, or p2pcloopd went away.
        """
        for wanted in missing.ranges:
            data = b"".join(
                self._client.call(
                    "read",
                    on_event,
                    torrent=part.torrent,
                    offset=part.offset,
                    length=part.length,
                    heal=part.heal,
                )["data"]
                for part in wanted.parts()
            )
            self._stored.accept(wanted, data)


class _NoAnswerError(Exception):
    """No peer answers."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A stored image that a delta is compared with.

    Attributes:
        ref: the image.
        image: opened.
        supply: fetches missing ranges, however long it takes.
        try_supply: fetches them, unless no peer answers; returns whether it did.
    """

    ref: StoredRef
    image: MergedImage
    supply: Callable[[Missing], None]
    try_supply: Callable[[Missing], bool]


def open_stored(ref: StoredRef, home: Home, stack: ExitStack) -> Opened:
    """Open an image over a connection of its own, so that two can be read on two threads."""
    client = stack.enter_context(ensure_daemon(home))
    source = Source(replace(ref, client=client), home)
    stack.callback(source.close)
    image = source.open()
    stack.callback(image.close)

    def try_supply(missing: Missing) -> bool:
        try:
            source.supply(missing, give_up)
        except _NoAnswerError:
            client.close()  # a call is under way: the connection is of no more use
            return False
        return True

    def give_up(event: str, fields: dict[str, Any]) -> None:
        report_waiting(event, fields)
        if event == "waiting":
            raise _NoAnswerError

    return Opened(ref, image, source.supply, try_supply)
