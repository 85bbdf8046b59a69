"""The reads of a guest and their times, from the log of an nbdkit that serves it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bench.guests import boot_initramfs, disk_arguments, guest
from bench.harness import Bench, BenchError
from bench.processes import Argument, fresh_copy, server
from tools.console import Console

# nbdkit-log-filter(1): `TIME connection=1 Read id=7 offset=0x1000 count=0x1000 ...`, and at its end
# `TIME connection=1 ...Read id=7 return=0 (Success)`.
_TIME = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) connection=(\d+) "
_BEGIN = re.compile(_TIME + r"Read id=(\d+) offset=0x([0-9a-f]+) count=0x([0-9a-f]+)")
_END = re.compile(_TIME + r"\.\.\.Read id=(\d+) ")


@dataclass(frozen=True, slots=True)
class Read:
    """A read as it was recorded.

    Attributes:
        offset, length: bytes of the device.
        after: how many reads had been answered when it was issued.
        think: seconds between the last of these answers and it.
    """

    offset: int
    length: int
    after: int = 0
    think: float = 0.0


def parse_log(text: str) -> list[Read]:
    """The reads in an nbdkit log, in order.

    Raises:
        BenchError: there are none.
    """
    reads: list[Read] = []
    answered, last = 0, None
    for line in text.splitlines():
        if match := _END.match(line):
            answered, last = answered + 1, datetime.fromisoformat(match[1])
        elif match := _BEGIN.match(line):
            time = datetime.fromisoformat(match[1])
            think = (time - last).total_seconds() if last else 0.0
            reads.append(Read(int(match[4], 16), int(match[5], 16), answered, think))
    if not reads:
        raise BenchError("nbdkit's log has no reads")
    return reads


def record(bench: Bench, until: Callable[[Console], object]) -> list[Read]:
    """Boot a copy of the raw image, use its console as `until` does, and return its reads.

    Raises:
        BenchError: it did not boot, or `until` failed.
    """
    copy, log = bench.work / "copy.img", bench.work / "reads.log"
    nbd, socket = bench.work / "nbd.sock", bench.work / "qsd.sock"
    log.unlink(missing_ok=True)
    fresh_copy(bench.image, copy)
    serve: list[Argument] = ["nbdkit", "-f", "-U", nbd, "--filter=log", "file"]
    serve += [copy, f"logfile={log}"]
    export: list[Argument] = [
        *("qemu-storage-daemon", "--blockdev"),
        f"driver=nbd,node-name=disk,server.type=unix,server.path={nbd}",
        "--export",
        f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={socket},writable=on",
    ]
    with (
        server(serve, nbd, bench.work / "nbdkit.log"),
        server(export, socket, bench.work / "qsd.log"),
        guest(
            bench, disk_arguments(socket, boot_initramfs(bench)), bench.work / "traced.log"
        ) as console,
    ):
        until(console)
    return parse_log(log.read_text())
