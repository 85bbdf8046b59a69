"""Boots to the login prompt: from an empty store, and with all chunks here.

The clock runs from the start of the first process (p2pcloop's command, the foreign server) to the
prompt on the guest's console. All guests have the same kernel, memory and processor; those of
p2pcloop and qemu-storage-daemon the same initramfs too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
    fresh_node,
    node,
    run,
    seeding,
    server,
    storage_daemon_argv,
    tail,
)
from p2pcloopd.programs import find_program
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
def _contenders(bench: Bench) -> Iterator[Contenders]:
    warm_home = bench.work / "warm"
    with seeding(bench) as link, node(bench, warm_home):
        run([bench.p2pcloop, "fetch", link, "--home", warm_home])

        def cold() -> Values:
            with fresh_node(bench, "reader") as home:
                return by_p2pcloop(bench, link, home)

        yield {
            "p2pcloop, empty store": cold,
            "p2pcloop, all here": lambda: by_p2pcloop(bench, link, warm_home),
            "qemu-storage-daemon": lambda: from_storage_daemon(bench),
            "ubd": lambda: from_ubd(bench),
        }


_COLD, _WARM = ("p2pcloop, empty store", "seconds"), ("p2pcloop, all here", "seconds")
_QEMU = ("qemu-storage-daemon", "seconds")

BOOT = Measure(
    "boot",
    "boot over loopback from one peer, and with all here, against qemu and ubd with the raw file",
    {"seconds": "s"},
    [
        Row("cold boot / qemu-storage-daemon", _COLD, 1.4, _QEMU),
        Row("warm boot / qemu-storage-daemon", _WARM, 1.1, _QEMU),
        Row("warm boot / ubd", _WARM, 1.25, ("ubd", "seconds")),
    ],
    _contenders,
)

_EXT4 = "ext4, block overlay"
_KINDS = ("squashfs", "iso9660", "erofs")


@contextmanager
def _read_only(bench: Bench) -> Iterator[Contenders]:
    tree = bench.work / "tree"
    tree.mkdir()
    # As an ordinary user debugfs cannot give files to others: all are root's in the copies.
    run([find_program("debugfs", "e2fsprogs"), "-R", f"rdump / {tree}", bench.image])
    images = {_EXT4: bench.image}
    for kind in _KINDS:
        image = images[kind] = bench.work / kind
        _make(kind, tree, image)
    yield {name: partial(_boot_with_overlay, bench, image) for name, image in images.items()}


def _make(kind: str, tree: Path, image: Path) -> None:
    match kind:
        case "squashfs":
            program = find_program("mksquashfs", "squashfs-tools")
            run([program, tree, image, "-all-root", "-quiet", "-no-progress"])
        case "iso9660":
            run([find_program("genisoimage", "genisoimage"), "-quiet", "-r", "-o", image, tree])
        case "erofs":
            program = find_program("mkfs.erofs", "erofs-utils")
            run([program, "--all-root", "-zlz4hc", image, tree])


def _boot_with_overlay(bench: Bench, image: Path) -> Values:
    overlay = bench.work / "mine.delta"
    try:
        return by_p2pcloop(bench, str(image), bench.work / "home", "--overlay", str(overlay))
    finally:
        overlay.unlink(missing_ok=True)


READ_ONLY = Measure(
    "boot-readonly",
    "boot of squashfs, iso9660 and erofs with a files overlay, against ext4 with a block overlay",
    {"seconds": "s"},
    [Row(f"boot of {kind} / ext4", (kind, "seconds"), 1.3, (_EXT4, "seconds")) for kind in _KINDS],
    _read_only,
)
"""All hold the same files, and the overlay is a new file at each boot."""
