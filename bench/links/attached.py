"""Boots from a copy of the image, and from NBD servers across a link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.links.network import Host
from bench.links.rig import Boot, Contender, Rig, disk_guest, listening, overlay_on
from bench.processes import Argument, fresh_copy
from tools.console import Console

_NBDKIT_PORT, _QEMU_PORT = 10809, 10810


@contextmanager
def _local(rig: Rig, _shared: Path) -> Iterator[Boot]:
    def boot(place: Path, _limit: float) -> AbstractContextManager[Console]:
        copy = place / "copy.img"
        fresh_copy(rig.bench.image, copy)
        return disk_guest(rig, [f"driver=file,node-name=disk,filename={copy}"], place)

    yield boot


def attached(rig: Rig, backing: str) -> Boot:
    """Boots from a read-only blockdev of qemu's (its node called `far`)."""

    def boot(place: Path, _limit: float) -> AbstractContextManager[Console]:
        disk = overlay_on("far", place, rig.bench.image.stat().st_size)
        return disk_guest(rig, [f"node-name=far,read-only=on,{backing}", disk], place)

    return boot


def _nbd(host: Host, port: int) -> str:
    return f"driver=nbd,server.type=inet,server.host={host.address},server.port={port}"


@contextmanager
def _nbdkit_file(rig: Rig, shared: Path) -> Iterator[Boot]:
    argv: list[Argument] = ["nbdkit", "-f", "-r", "-i", rig.seeder.address]
    argv += ["-p", str(_NBDKIT_PORT), "file", rig.bench.image]
    with listening(rig.seeder, argv, _NBDKIT_PORT, shared / "log"):
        yield attached(rig, _nbd(rig.seeder, _NBDKIT_PORT))


@contextmanager
def _qemu_cloop(rig: Rig, shared: Path) -> Iterator[Boot]:
    argv: list[Argument] = ["qemu-nbd", "-f", "cloop", "-r", "-t", "-b", rig.seeder.address]
    argv += ["-p", str(_QEMU_PORT), rig.bench.cloop]
    with listening(rig.seeder, argv, _QEMU_PORT, shared / "log"):
        yield attached(rig, _nbd(rig.seeder, _QEMU_PORT))


LOCAL = Contender("local", "qemu-storage-daemon with a copy of the raw file: no link", _local)
NBDKIT_FILE = Contender(
    "nbdkit-file",
    "nbdkit file with the raw image on the seeder, attached by qemu-storage-daemon's NBD client",
    _nbdkit_file,
)
QEMU_CLOOP = Contender(
    "qemu-cloop", "qemu-nbd -f cloop on the seeder, attached in the same way", _qemu_cloop
)
