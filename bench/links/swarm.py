"""Boots by other BitTorrent clients: a whole download, nbdkit's torrent plugin, btfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.guests import guest
from bench.harness import BenchError
from bench.links import torrents
from bench.links.attached import attached
from bench.links.rig import (
    Boot,
    Contender,
    Rig,
    TookTooLongError,
    disk_guest,
    listening,
    node_on,
    seed,
)
from bench.processes import Argument, server, serving, tail
from p2pcloop.formats.link import parse_link
from tools.console import Console

_READER_PORT = 6881
_NO_OTHER_PEERS = (
    *("--enable-dht=false", "--enable-dht6=false"),
    *("--bt-enable-lpd=false", "--enable-peer-exchange=false"),
)


def aria2_argv(torrent: Path, directory: Path, port: int) -> list[Argument]:
    """aria2c, which knows peers by the tracker alone."""
    argv: list[Argument] = ["aria2c", "--no-conf", f"--dir={directory}", f"--listen-port={port}"]
    return [*argv, *_NO_OTHER_PEERS, "--file-allocation=none", torrent]


@contextmanager
def _download(rig: Rig, shared: Path) -> Iterator[Boot]:
    with node_on(rig.bench, rig.seeder, shared / "home") as home:
        told = seed(rig.bench, rig.seeder, home, rig.bench.cloop)
        content = torrents.of_node(home, told["torrent"])
        (pack,) = (path.relative_to(content.files) for path in content.files.rglob("pack"))
        [(_, port), *_] = parse_link(told["link"]).peers
        with torrents.tracker(rig.seeder, [(rig.seeder, port)], shared) as url:
            torrent = content.write(shared / "pack.torrent", url)

            @contextmanager
            def boot(place: Path, limit: float) -> Iterator[Console]:
                client = aria2_argv(torrent, place, _READER_PORT)
                _run_for([*rig.reader.inside, *client, "--seed-time=0"], limit, place / "aria2.log")
                backing = f"driver=cloop,file.driver=file,file.filename={place / pack}"
                with attached(rig, backing)(place, limit) as console:
                    yield console

            yield boot


def _run_for(argv: list[Argument], limit: float, log: Path) -> None:
    """Run a program to its end.

    Raises:
        TookTooLongError: it had not ended after `limit` seconds.
        BenchError: it failed.
    """
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TookTooLongError from None
    if code:
        raise BenchError(f"aria2c ended with {code}: {tail(log)}")


@contextmanager
def _seeded(rig: Rig, shared: Path, port: int) -> Iterator[Path]:
    """The .torrent file of the raw image, seeded by aria2 on a port of the seeder."""
    content = torrents.of_file(rig.bench.image, shared / "files")
    with torrents.tracker(rig.seeder, [(rig.seeder, port)], shared) as url:
        torrent = content.write(shared / "image.torrent", url)
        client = aria2_argv(torrent, content.files, port)
        options = ("--bt-seed-unverified=true", "--seed-ratio=0.0", "--allow-overwrite=true")
        with listening(rig.seeder, [*client, *options], port, shared / "aria2.log"):
            yield torrent


@contextmanager
def _nbdkit_torrent(rig: Rig, shared: Path) -> Iterator[Boot]:
    with _seeded(rig, shared, 6882) as torrent:

        @contextmanager
        def boot(place: Path, _limit: float) -> Iterator[Console]:
            socket = place / "nbd.sock"
            argv: list[Argument] = [*rig.reader.inside, "nbdkit", "-f", "-U", socket]
            argv += ["--filter=cow", "torrent", torrent, f"cache={place}"]
            disk = f"driver=nbd,node-name=disk,server.type=unix,server.path={socket}"
            with (
                server(argv, socket, place / "nbdkit.log"),
                disk_guest(rig, [disk], place) as console,
            ):
                yield console

        yield boot


@contextmanager
def _btfs(rig: Rig, shared: Path) -> Iterator[Boot]:
    with _seeded(rig, shared, 6883) as torrent:

        @contextmanager
        def boot(place: Path, _limit: float) -> Iterator[Console]:
            mount, log = place / "mount", place / "guest.log"
            mount.mkdir()
            image = mount / rig.bench.image.name
            argv: list[Argument] = [*rig.reader.inside, "btfs", "-f", f"--data-directory={place}"]
            seen = Path(f"/proc/{rig.reader.pid}/root", *image.parts[1:])  # it is mounted there
            disk = [f"ubd0={place / 'cow'},{image}", "root=/dev/ubda", "rw"]
            with (
                serving([*argv, torrent, mount], seen.exists, place / "btfs.log"),
                guest(rig.bench, disk, log, rig.reader.inside) as console,
            ):
                yield console

        yield boot


DOWNLOAD = Contender(
    "download",
    "all of the cloop by aria2 from the p2pcloopd that seeds it, then a boot from that by qemu",
    _download,
)
NBDKIT_TORRENT = Contender(
    "nbdkit-torrent",
    "nbdkit torrent and its cow filter at the reader, the raw image seeded by aria2",
    _nbdkit_torrent,
)
BTFS = Contender("btfs", "btfs and ubd with a COW file, the raw image seeded by aria2", _btfs)
