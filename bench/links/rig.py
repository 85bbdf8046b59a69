"""A seeder and a reader on one link, and what contenders need on either side."""

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
"""Prepares one boot when called (with an empty directory, and the seconds that it may take), which
is not part of its time. Starts it when entered, and gives its console; ends it when left."""


@dataclass(frozen=True, slots=True)
class Rig:
    """Where a contender runs.

    Attributes:
        initramfs: what guests boot a virtio disk with.
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
        about: what it is given, for the report.
        serve: enters what all of its boots share (servers on the seeder) and gives its boot;
            takes the rig and an empty directory.
    """

    name: str
    about: str
    serve: Callable[[Rig, Path], AbstractContextManager[Boot]]


class TookTooLongError(Exception):
    """What comes before a guest was not over in the time that the boot may take."""


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
    """Seed an image on a host, with `more` options; what `p2pcloop seed --json` tells."""
    argv: list[Argument] = [*host.inside, bench.p2pcloop, "seed", image, "--name", "bench", *more]
    told = run_json([*argv, "--json", "--home", home])
    if not isinstance(told, dict) or not isinstance(told.get("link"), str):
        raise BenchError("p2pcloop seed --json told no link")
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

    What the guest writes stays with the reader. In clusters of 4 KiB, so that a write of part of a
    larger one fetches nothing.
    """
    path = place / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, str(size)])
    file = f"file.driver=file,file.filename={path}"
    return f"driver=qcow2,node-name=disk,{file},backing={backing}"
