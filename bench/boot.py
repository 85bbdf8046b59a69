"""Boots to the login prompt: from an empty store, and with all chunks here.

The clock runs from the start of the first process (p2pcloop's command, the foreign server) to the
prompt on the guest's console. All guests have the same kernel, memory and processor; those of
p2pcloop and qemu-storage-daemon the same initramfs too.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.guests import (
    LIMIT,
    LOGIN,
    boot_initramfs,
    boot_seconds,
    disk_arguments,
)
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import (
    fresh_copy,
    node,
    run,
    seeding,
    server,
    storage_daemon_argv,
    tail,
)
from tools.console import Console, ConsoleError


def from_storage_daemon(bench: Bench) -> Values:
    """One boot from qemu-storage-daemon serving a fresh copy of the raw file."""
    copy, socket = bench.work / "copy.img", bench.work / "qsd.sock"
    initramfs = boot_initramfs(bench)
    fresh_copy(bench.image, copy)
    start = time.monotonic()
    with server(storage_daemon_argv(copy, socket), socket, bench.work / "qsd.log"):
        arguments = disk_arguments(socket, initramfs)
        return {"seconds": boot_seconds(bench, arguments, bench.work / "qsd-guest.log", start)}


def from_ubd(bench: Bench) -> Values:
    """One boot from a fresh copy of the raw file through UML's own block driver."""
    copy = bench.work / "copy.img"
    fresh_copy(bench.image, copy)
    arguments = [f"ubd0={copy}", "root=/dev/ubda", "rw"]
    start = time.monotonic()
    return {"seconds": boot_seconds(bench, arguments, bench.work / "ubd-guest.log", start)}


def by_p2pcloop(bench: Bench, link: str, home: Path, *options: str) -> Values:
    """One boot by the command; without `options` of its own, changes are not kept."""
    log, errors = bench.work / "p2pcloop-guest.log", bench.work / "p2pcloop-boot.log"
    argv = [str(bench.p2pcloop), "boot", link, "--home", str(home), "--mem", "512M"]
    argv += ["--cpu", str(bench.cpu), *options]
    start = time.monotonic()
    try:
        with Console([*argv, "--net", "none"], log=log, errors=errors) as console:
            console.expect(LOGIN, LIMIT)
            return {"seconds": time.monotonic() - start}
    except ConsoleError as err:
        raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err


@contextmanager
def _cold(bench: Bench) -> Iterator[Contenders]:
    with seeding(bench) as link:

        def cold() -> Values:
            home = bench.work / "reader"
            try:
                with node(bench, home):
                    return by_p2pcloop(bench, link, home)
            finally:
                shutil.rmtree(home, ignore_errors=True)

        yield {
            "p2pcloop, empty store": cold,
            "qemu-storage-daemon": lambda: from_storage_daemon(bench),
        }


@contextmanager
def _warm(bench: Bench) -> Iterator[Contenders]:
    with seeding(bench) as link, node(bench, bench.work / "reader") as home:
        run([bench.p2pcloop, "fetch", link, "--home", home])
        yield {
            "p2pcloop, all here": lambda: by_p2pcloop(bench, link, home),
            "qemu-storage-daemon": lambda: from_storage_daemon(bench),
            "ubd": lambda: from_ubd(bench),
        }


COLD = Measure(
    "boot-cold",
    "boot over loopback from one peer, against qemu-storage-daemon with the raw file",
    [
        Row(
            "cold boot / qemu-storage-daemon",
            "s",
            ("p2pcloop, empty store", "seconds"),
            1.4,
            ("qemu-storage-daemon", "seconds"),
        )
    ],
    _cold,
)

_OURS = ("p2pcloop, all here", "seconds")
WARM = Measure(
    "boot-warm",
    "boot with all chunks here, against qemu-storage-daemon and ubd with the raw file",
    [
        Row("warm boot / qemu-storage-daemon", "s", _OURS, 1.1, ("qemu-storage-daemon", "seconds")),
        Row("warm boot / ubd", "s", _OURS, 1.25, ("ubd", "seconds")),
    ],
    _warm,
)
