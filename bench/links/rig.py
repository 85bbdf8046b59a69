"""A seeder and a reader on one link, and the servers and guests that contenders run there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.guests import disk_arguments, guest
from bench.harness import Bench, BenchError
from bench.links.network import Host
from bench.processes import Argument, node, run, run_json, server, serving
from tools.console import Console

Boot = Callable[[Path, float], AbstractContextManager[Console]]
"""Called with an empty directory and the seconds that it may take, it prepares one boot; that is
not part of the boot's time. When entered it starts the boot and gives its console; when left it
ends the boot."""


@dataclass(frozen=True, slots=True)
class Rig:
    """Where a contender runs.

    Attributes:
        initramfs: with it guests boot a virtio disk.
        seeder, reader: the two hosts; one contender at a time uses the link.
    """

    bench: Bench
    initramfs: Path
    seeder: Host
    reader: Host


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to boot over a link; `contenders` has the table of them.

    Attributes:
        about: its input, for the report.
        serve: takes the rig and an empty directory, enters the servers on the seeder that all of
            its boots share, and gives its boot.
    """

    name: str
    about: str
    serve: Callable[[Rig, Path], AbstractContextManager[Boot]]


class TookTooLongError(Exception):
    """The preparation of a guest took longer than the boot may take."""


@contextmanager
def listening(host: Host, argv: Sequence[Argument], port: int, log: Path) -> Iterator[None]:
    """Run a server on a host; entered once it listens on its TCP port."""
    with serving([*host.inside, *argv], lambda: host.listens(port), log):
        yield


@contextmanager
def node_on(bench: Bench, host: Host, home: Path) -> Iterator[Path]:
    """A node's home, on a host; its p2pcloopd, if one was started, is stopped at the end."""
    with node(bench, home):
        listen_at(host, home)
        yield home


def listen_at(host: Host, home: Path, port: int = 0, more: str = "") -> None:
    """Have a node's p2pcloopd listen at a host's address, from its next start on.

    Args:
        more: of config.toml.
    """
    (home / "config.toml").write_text(f'listen = ["{host.address}:{port}"]\n{more}')


def seed(bench: Bench, host: Host, home: Path, image: Path, *more: str) -> dict[str, str]:
    """Seed an image on a host, with `more` options; returns the JSON of `p2pcloop seed`."""
    argv: list[Argument] = [*host.inside, bench.p2pcloop, "seed", image, "--name", "bench", *more]
    told = run_json([*argv, "--json", "--home", home])
    if not isinstance(told, dict) or not isinstance(told.get("link"), str):
        raise BenchError("p2pcloop seed --json printed no link")
    return told


@contextmanager
def disk_guest(rig: Rig, blockdevs: Sequence[str], place: Path) -> Iterator[Console]:
    """A guest on the reader whose disk is the node `disk` of a qemu-storage-daemon there."""
    socket = place / "disk.sock"
    nodes = [word for blockdev in blockdevs for word in ("--blockdev", blockdev)]
    export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={socket}"
    argv = ["qemu-storage-daemon", *nodes, "--export", f"{export},writable=on"]
    with (
        server([*rig.reader.inside, *argv], socket, place / "qsd.log"),
        guest(
            rig.bench,
            disk_arguments(socket, rig.initramfs),
            place / "guest.log",
            rig.reader.inside,
        ) as console,
    ):
        yield console


def overlay_on(backing: str, place: Path, size: int) -> str:
    """Make a qcow2 overlay; the blockdev `disk` that puts it over the node `backing`.

    The guest's writes stay with the reader. Clusters have 4 KiB: a write into part of a larger one
    would fetch the rest of it.
    """
    path = place / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, str(size)])
    file = f"file.driver=file,file.filename={path}"
    return f"driver=qcow2,node-name=disk,{file},backing={backing}"
