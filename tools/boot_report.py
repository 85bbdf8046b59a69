"""Read the JSON that `p2pcloop boot --report FILE` leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ReportError(Exception):
    """The report is absent or lacks a field."""


@dataclass(frozen=True, slots=True)
class BootReport:
    """The figures of a boot.

    Attributes:
        boot_seconds: from the command's start to the first login prompt; None: never seen.
        seconds: from the command's start to its end.
        exit: how the guest ended.
        bytes_received: bytes that crossed the wire for this boot.
        sources: bytes by the peer ("host:port") that they came from.
        image_size: bytes of the device.
        image_stored: bytes of the image's packs.
    """

    boot_seconds: float | None
    seconds: float
    exit: str
    bytes_received: int
    sources: dict[str, int]
    image_size: int
    image_stored: int

    @property
    def boot_text(self) -> str:
        """How long the boot took, for people."""
        if self.boot_seconds is None:
            return "no login prompt was seen"
        return f"login prompt after {self.boot_seconds:.1f} s"


def read_report(path: Path) -> BootReport:
    """The report at `path`.

    Raises:
        ReportError: there is none, or it lacks something.
    """
    try:
        facts: Any = json.loads(path.read_text())
    except FileNotFoundError as err:
        raise ReportError(f"p2pcloop boot wrote no report to {path}") from err
    except ValueError as err:
        raise ReportError(f"the report {path} is not JSON: {err}") from err
    try:
        boot_seconds = facts["boot_seconds"]
        return BootReport(
            boot_seconds=None if boot_seconds is None else float(boot_seconds),
            seconds=float(facts["seconds"]),
            exit=str(facts["exit"]),
            bytes_received=int(facts["bytes_received"]),
            sources={str(peer): int(count) for peer, count in facts["sources"].items()},
            image_size=int(facts["image_size"]),
            image_stored=int(facts["image_stored"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise ReportError(f"the report {path} lacks or misstates {err}") from err
