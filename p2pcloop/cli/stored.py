"""Opens stored images for commands that read them from end to end, without trio."""

from __future__ import annotations

from dataclasses import asdict

from p2pcloop.cli.control_client import ControlClient, OnEvent
from p2pcloop.cli.options import running_command
from p2pcloop.cli.refs import StoredRef, report_waiting
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease


class Source:
    """A stored image, and p2pcloopd, which has what is missing of it."""

    def __init__(self, ref: StoredRef, home: Home) -> None:
        """Nothing is read yet.

        Raises:
            UsageError, MismatchError: the image is private; see `StoredRef.check_secret`.
        """
        self._client: ControlClient = ref.client
        # Held until this process ends.
        self._lease = Lease(home, ref.signed.id, running_command())
        self._stored = StoredImage.of_home(ref.signed.manifest, home, ref.secret)

    def open(self) -> MergedImage:
        """Open the image; asks for headers and maps that are not here.

        Raises:
            P2pcloopError: they can never be had, or p2pcloopd went away.
        """
        while True:
            try:
                return self._stored.open()
            except Missing as missing:
                self.supply(missing)

    def supply(self, missing: Missing, on_event: OnEvent = report_waiting) -> None:
        """Bring ranges here, as long as it takes; `on_event` is told of p2pcloopd's events.

        Raises:
            P2pcloopError: they can never be had, or p2pcloopd went away.
        """
        for wanted in missing.ranges:
            data = b"".join(
                self._client.call("read", on_event, **asdict(part))["data"]
                for part in wanted.parts()
            )
            self._stored.accept(wanted, data)
