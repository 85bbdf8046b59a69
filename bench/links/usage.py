"""Processor time of the bench's own processes, and of everything else on the machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time between two moments.

    Attributes:
        own: seconds of processor time of this program and all that it started, ended ones too.
        others: share of all processors' time that went elsewhere: other processes, the kernel's
            own work, another virtual machine.
        busy: share of all processors' time that was used by anything.
    """

    own: float
    others: float
    busy: float


class Meter:
    """Measures processor time from when it is made.

    Args:
        group: a control group that this process and its children are in; None where there is no
            version 2 of them, and nothing can be measured.
    """

    def __init__(self, group: Path | None) -> None:
        self._group = group
        self._start = self._now()

    def usage(self) -> Usage | None:
        """The use since the meter was made."""
        if self._group is None:
            return None
        wall, busy, own = (end - start for end, start in zip(self._now(), self._start, strict=True))
        available = wall * (os.cpu_count() or 1)
        others = max(0.0, busy - own)  # ticks and the group's clock differ a little
        return Usage(own, min(1.0, others / available), min(1.0, max(busy, own) / available))

    def _now(self) -> tuple[float, float, float]:
        wall = time.monotonic()
        if self._group is None:
            return wall, 0.0, 0.0
        busy = busy_seconds(Path("/proc/stat").read_text())
        return wall, busy, own_seconds((self._group / "cpu.stat").read_text())


def busy_seconds(stat: str) -> float:
    """Time that all processors were not idle, or were taken away, by /proc/stat (proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds(stat: str) -> float:
    """Time of a control group, by its cpu.stat."""
    match = re.search(r"^usage_usec (\d+)$", stat, re.MULTILINE)
    return int(match[1]) / 1e6 if match else 0.0


@contextmanager
def own_group() -> Iterator[Path | None]:
    """Put this process into a new control group while the context lasts; None where that fails.

    Its children that are still in the group at the end are ended.
    """
    mount = re.search(r"^\S+ (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.MULTILINE)
    before = re.search(r"^0::(\S+)", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    if not mount or not before:
        yield None
        return
    parent = Path(mount[1]) / before[1].lstrip("/")
    group = parent / f"p2pcloop-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        _remove(group)


def _remove(group: Path) -> None:
    """End the processes that are left in a group, and remove it; that may take a moment."""
    with suppress(OSError):  # the kernel has had it since 5.14
        (group / "cgroup.kill").write_text("1")
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.02)
