"""Many nodes that boot the same image at once, each on a slow link of its own.

One seeder has the upload of one node. Each node is a p2pcloopd and a block server of its own, whose
guest is a recorded boot that is replayed through NBD: that many guests would be too much for the
processors. One more may be a real guest. Each p2pcloopd runs already, and knows nothing of the
image: to start them all at once would take the processors of one machine, not of many.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.guests import LOGIN, boot_initramfs
from bench.harness import Bench
from bench.links.link import Link
from bench.links.network import Host, network
from bench.links.ours import Publish, boot_link, publish_optimised
from bench.links.rig import Rig, listen_at, node_on
from bench.links.torrents import tell_tracker, tracker
from bench.links.usage import Meter, Usage
from bench.nbd_reader import NbdReader
from bench.processes import Argument, run, server
from bench.replay import Wait, replay
from bench.trace import Read

LIMIT = 600.0
PORT = 6881


@dataclass(frozen=True, slots=True)
class Replayed:
    """One node's replayed boot.

    Attributes:
        seconds: from the start of its command to the last read.
    """

    seconds: float
    waits: tuple[Wait, ...]


@dataclass(frozen=True, slots=True)
class Crowd:
    """What one crowd came to.

    Attributes:
        boots: of the nodes that replay.
        guest: seconds to the prompt of the real one; None where there was none.
        sent: bytes at the seeder's interface meanwhile.
        usage: of the processors meanwhile; None where unknown.
    """

    boots: tuple[Replayed, ...]
    guest: float | None
    sent: int
    usage: Usage | None

    @property
    def last(self) -> float:
        """Seconds of the last that replays."""
        return max(boot.seconds for boot in self.boots)


@dataclass(frozen=True, slots=True)
class Seeded:
    """What all crowds of a run share.

    Attributes:
        link: p2pcloop's, to the image.
        nodes: hosts, as many as the largest crowd.
        group: the control group of this program.
    """

    rig: Rig
    link: str
    nodes: Sequence[Host]
    group: Path | None


@contextmanager
def seeded(
    link: Link, count: int, bench: Bench, group: Path | None, publish: Publish = publish_optimised
) -> Iterator[Seeded]:
    """Lay links for a seeder and `count` nodes, and have the seeder serve an image.

    A tracker on the seeder tells each node of all others that boot.
    """
    names = ["seeder", *(f"n{number}" for number in range(count))]
    with (
        network(link, names, bench.work) as (seeder, *nodes),
        tracker(seeder, [], bench.work) as url,
        node_on(bench, seeder, bench.work / "seeder") as home,
    ):
        listen_at(seeder, home, PORT, f'[discovery]\nannounce_trackers = ["{url}"]\n')
        rig = Rig(bench, boot_initramfs(bench), seeder, nodes[0])
        yield Seeded(rig, publish(rig, home), nodes, group)


def run_crowd(
    shared: Seeded, count: int, reads: Sequence[Read], place: Path, *, guest: bool = False
) -> Crowd:
    """Boot so many nodes at once, with empty homes; one of them a real guest where wanted."""
    place.mkdir()
    there = (shared.rig.seeder, *shared.nodes[:count])
    tell_tracker(shared.rig.bench.work, [(host, PORT) for host in there])
    rigs = [replace(shared.rig, reader=host) for host in shared.nodes[:count]]
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        homes = [
            stack.enter_context(node_on(rig.bench, rig.reader, place / f"n{number}"))
            for number, rig in enumerate(rigs)
        ]
        for rig, home in zip(rigs, homes, strict=True):
            listen_at(rig.reader, home, PORT, "[discovery]\ntrackers = true\n")
            run([*rig.reader.inside, rig.bench.p2pcloop, "daemon", "start", "--home", home])
        meter, before = Meter(shared.group), shared.rig.seeder.traffic()
        real = pool.submit(_real, rigs.pop(), shared.link, homes.pop()) if guest else None
        boots = list(
            pool.map(lambda rig, home: _replayed(rig, shared.link, home, reads), rigs, homes)
        )
        prompt = real.result() if real else None
        sent, usage = shared.rig.seeder.traffic().since(before).sent, meter.usage()
    shutil.rmtree(place)
    return Crowd(tuple(boots), prompt, sent, usage)


def _replayed(rig: Rig, link: str, home: Path, reads: Sequence[Read]) -> Replayed:
    socket = home.with_suffix(".sock")
    argv: list[Argument] = [*rig.reader.inside, rig.bench.p2pcloop, "block", link]
    argv += ["--profile", "--home", home, "--nbd", f"unix:{socket}"]
    start = time.monotonic()
    with server(argv, socket, home.with_suffix(".log"), limit=LIMIT):
        reader = NbdReader(socket, LIMIT)
        try:
            waits = replay(reader, reads)
            return Replayed(time.monotonic() - start, tuple(waits))
        finally:
            reader.close()


def _real(rig: Rig, link: str, home: Path) -> float:
    place = home.with_suffix(".guest")
    place.mkdir()
    start = time.monotonic()
    with boot_link(rig, link, home, place) as console:
        console.expect(LOGIN, LIMIT)
        return time.monotonic() - start
