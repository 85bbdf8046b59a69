"""Who boots the same guest over the same link, each given what it is best with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks.harness import BenchError
from tools.benchmarks.links.rig import (
    Boot,
    Rig,
    disk_guest,
    listening,
    node_on,
    overlay_on,
    seed,
)
from tools.benchmarks.processes import Argument, fresh_copy, tail
from tools.console import Console, ConsoleError

NBD_PORT = 10809


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to boot.

    Attributes:
        about: what it was given, for the report.
        serve: enters what all of its boots share, on the seeder, and gives its boot.
    """

    name: str
    about: str
    serve: Callable[[Rig, Path], AbstractContextManager[Boot]]


@contextmanager
def _local(rig: Rig, _shared: Path) -> Iterator[Boot]:
    def boot(place: Path, _limit: float) -> AbstractContextManager[Console]:
        copy = place / "copy.img"
        fresh_copy(rig.bench.image, copy)
        return disk_guest(rig, [f"driver=file,node-name=disk,filename={copy}"], place)

    yield boot


@contextmanager
def _p2pcloop(rig: Rig, shared: Path) -> Iterator[Boot]:
    with node_on(rig.bench, rig.seeder, shared / "home") as home:
        link = seed(rig.bench, rig.seeder, home, rig.bench.cloop)["link"]

        @contextmanager
        def boot(place: Path, _limit: float) -> Iterator[Console]:
            with node_on(rig.bench, rig.reader, place / "home") as home:
                argv: list[Argument] = [*rig.reader.inside, rig.bench.p2pcloop, "boot", link]
                argv += ["--home", home, "--mem", "512M", "--net", "none"]
                argv += ["--cpu", str(rig.bench.cpu)]
                log, errors = place / "guest.log", place / "boot.log"
                try:
                    with Console([*map(str, argv)], log=log, errors=errors, patience=0) as console:
                        yield console
                except ConsoleError as err:
                    raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err

        yield boot


def _attach(rig: Rig, server: str) -> Boot:
    """Boots from what an NBD server exports, read-only, to the reader."""

    def boot(place: Path, _limit: float) -> AbstractContextManager[Console]:
        disk = overlay_on("far", place, rig.bench.image.stat().st_size)
        return disk_guest(rig, [f"driver=nbd,node-name=far,read-only=on,{server}", disk], place)

    return boot


def _across(rig: Rig) -> str:
    return f"server.type=inet,server.host={rig.seeder.address},server.port={NBD_PORT}"


@contextmanager
def _nbdkit_file(rig: Rig, shared: Path) -> Iterator[Boot]:
    place: list[Argument] = ["-i", rig.seeder.address, "-p", str(NBD_PORT)]
    argv = ["nbdkit", "-f", "-r", *place, "file", rig.bench.image]
    with listening(rig.seeder, argv, NBD_PORT, shared / "nbdkit.log"):
        yield _attach(rig, _across(rig))


PLAIN, PROFILED, WARM = "p2pcloop", "p2pcloop-profile", "p2pcloop-warm"
RIVALS = ("nbdkit-file", "qemu-cloop", "nbdkit-torrent", "btfs")
"""Those that p2pcloop is to be sooner than from a plain cloop."""

LOCAL = Contender("local", "qemu-storage-daemon with a copy of the raw file: no link", _local)

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(PLAIN, "p2pcloop boot of a plain cloop, by its link", _p2pcloop),
        Contender("nbdkit-file", "nbdkit file on the seeder; NBD to the reader", _nbdkit_file),
    )
}
