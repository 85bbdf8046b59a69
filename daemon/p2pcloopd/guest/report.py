"""The report of a boot: how it went, for programs to read (docs/commands.md)."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import P2pcloopError, StorageError, storage_error
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr
from p2pcloopd.guest.result import GuestResult

SAID_SECONDS = 60.0
"""A resumed guest has answered by then."""

_SAID_STEP = 0.01
"""Output within this time is noted once."""


@dataclass(slots=True)
class Outcome:
    """How a boot went, as far as it got. Times are seconds of the monotonic clock.

    Attributes:
        started: when the command started.
        begun: when the guest started.
        went_on: when a resumed guest was allowed to go on.
        said: when it printed something then, for `SAID_SECONDS`.
        woken: when it had been told that it was resumed; None if it has no agent, or does not run.
        reseeds: whether its kernel begins its random numbers anew by itself.
        guest: how it ended, or None where it did not boot.
        block: what the block server reported.
        error: why the guest did not start, or did not run to its end.
    """

    started: float
    begun: float | None = None
    went_on: float | None = None
    said: list[float] = field(default_factory=list)
    woken: float | None = None
    reseeds: bool = True
    guest: GuestResult | None = None
    block: dict[str, Any] = field(default_factory=dict)
    error: P2pcloopError | None = None

    def hear(self, _data: bytes) -> None:
        """Note that the guest printed something."""
        now = time.monotonic()
        if self.went_on is None or now > self.went_on + SAID_SECONDS:
            return
        if self.said and now < self.said[-1] + _SAID_STEP:
            self.said.pop()
        self.said.append(now)

    def wake(self, *, reseeds: bool) -> None:
        """Note that it was told that it was resumed."""
        self.woken, self.reseeds = time.monotonic(), reseeds

    def check(self) -> None:
        """Raise the boot's error, if there was one. It takes the place of an error that is raised
        while the report is written."""
        if self.error is not None:
            raise self.error

    def facts(self) -> dict[str, Any]:
        """Return the part of the report about times and the guest's end."""
        facts: dict[str, Any] = {
            "block_server": self.block,
            "boot_seconds": None,
            "total_seconds": time.monotonic() - self.started,
        }
        if self.error is not None:
            code = self.error.exit_code
            return facts | {"exit": "failed", "exit_code": code, "error": str(self.error)}
        assert self.guest is not None
        assert self.begun is not None
        if self.guest.boot_seconds is not None:
            facts["boot_seconds"] = self.begun - self.started + self.guest.boot_seconds
        kernel = self.guest.kernel
        return facts | {
            "exit": self.guest.reason,
            "reboots": self.guest.reboots,
            "exit_code": self.guest.exit_code,
            "machine": self.guest.machine,
            "kernel": None if kernel is None else str(kernel.path),
            "kernel_release": None if kernel is None else kernel.release,
            "seconds": self.guest.seconds,
        }


def image_facts(
    target: ImageFile | StoredRef, before: dict[str, Any] | None, home: Home
) -> dict[str, Any]:
    """Return the part of the report about the image and the bytes received for it.

    Args:
        target: the image.
        before: p2pcloopd's status before the boot; None for a local image.
        home: the node's.
    """
    # All this is loaded for a report alone.
    from p2pcloop.client.daemon import ensure_daemon  # noqa: PLC0415
    from p2pcloop.client.traffic import measure_traffic  # noqa: PLC0415
    from p2pcloop.making.pack import device_size, odd_length  # noqa: PLC0415

    if isinstance(target, ImageFile):
        return {
            "image": str(target.name),
            "image_size": odd_length(target) or device_size(target),
            "image_stored": target.size,
            "bytes_received": 0,
            "sources": {},
        }
    manifest = target.signed.manifest
    facts = {
        "image": target.name,
        "manifest": target.signed.id,
        "image_size": manifest.disk_length,
        "image_stored": sum(layer.pack_length for layer in manifest.all_layers),
    }
    assert before is not None
    # A connection of its own: p2pcloopd may have been started anew under a running guest.
    with ensure_daemon(home) as client:
        return facts | measure_traffic(before, client.call("status"))


def write_report(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts to a file, or to a pipe with a name, which a program has open to read.

    Raises:
        StorageError: the system refused, or no program has the pipe open.
    """
    try:
        # Opened so, a pipe without a reader is an error; else it would be waited for, for ever.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)
        os.set_blocking(fd, True)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(to_json(facts) + "\n")
    except OSError as err:
        if err.errno == errno.ENXIO:
            raise StorageError(
                tr(
                    "cannot write the report {path}: it is a pipe, and no program reads it",
                    path=path,
                ),
                errno=errno.ENXIO,
                hint="have a program read it before this command begins",
            ) from err
        raise storage_error(tr("cannot write the report {path}", path=path), err) from err
