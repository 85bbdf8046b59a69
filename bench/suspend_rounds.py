"""A campaign: a guest in QEMU is suspended and resumed many times, while things go wrong.

Usage: python -m bench.suspend_rounds [--nodes] [--rounds N] [--seed N] [--minutes N]. tests/support
has the rounds; the suite runs a few. With --nodes the guest goes to and fro between two nodes, and
their p2pcloopd is killed; without, QEMU and the servers of its disk and memory are. It ends with 1
and the round at which something was lost or wrong.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support import node_rounds
from tests.support.node_rounds import NODE_EVENTS, NodeEvent, run_node_rounds
from tests.support.programs import Nodes
from tests.support.suspend_rounds import EVENTS, Event, begin, run_rounds
from tools.tiny_image import build_tiny_image

_IMAGE_SIZE = 32 << 20


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(description="suspend and resume a guest many times")
    parser.add_argument("--nodes", action="store_true", help="to and fro between two nodes")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="chooses what goes wrong, and when")
    parser.add_argument("--minutes", type=float, default=60, help="no round begins after that")
    options = parser.parse_args(words)
    return _between_nodes(options) if options.nodes else _with_one_guest(options)


def _with_one_guest(options: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="suspend-rounds-"))
    number = 0
    pauses: list[float] = []
    changed: list[int] = []
    seen: Counter[Event] = Counter()
    try:
        image = folder / "tiny.img"
        build_tiny_image(image, size=_IMAGE_SIZE)
        events = _events(options.rounds, options.seed, time.monotonic() + 60 * options.minutes)
        for number, done in enumerate(run_rounds(image, folder, begin(image, folder), events), 1):
            seen[done.event] += 1
            if done.pause is not None:
                pauses.append(done.pause)
                changed.append(done.changed)
            print(f"{number}: {done.event}", flush=True)
    except AssertionError as err:
        said = f"round {number + 1} of --seed {options.seed}: {err}"
        print(said, f"its states are in {folder}", sep="\n", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(f"{number} rounds: {dict(seen)}; nothing lost, nothing wrong")
    if pauses:
        print(
            f"suspended in {statistics.median(pauses):.2f} s (median, with the copy of its memory"
            f" and its disk), {max(pauses):.2f} s at most;"
            f" {statistics.median(changed) / 1e6:.1f} MB of memory changed (median)"
        )
    return 0


def _between_nodes(options: argparse.Namespace) -> int:
    chance = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    seen: Counter[NodeEvent] = Counter()
    with Nodes() as made:
        nodes = made.make(), made.make()
        image = made.directory / "tiny.img"
        build_tiny_image(image, size=_IMAGE_SIZE)
        events = (chance.choice(NODE_EVENTS) for _ in range(options.rounds))
        in_time = itertools.takewhile(lambda _: time.monotonic() < end, events)
        try:
            left = node_rounds.begin(nodes[0], image)
            for event in run_node_rounds(nodes, left, in_time, lambda: chance.uniform(0, 3)):
                seen[event] += 1
                print(f"{seen.total()}: {event}", flush=True)
        except AssertionError as err:
            print(f"round {seen.total() + 1} of --seed {options.seed}: {err}", file=sys.stderr)
            return 1
    print(f"{seen.total()} rounds: {dict(seen)}; nothing lost, nothing wrong")
    return 0


def _events(rounds: int, seed: int, end: float) -> Iterator[Event]:
    chance = random.Random(seed)
    for _ in range(rounds):
        if time.monotonic() > end:
            return
        yield chance.choice(EVENTS)


if __name__ == "__main__":
    sys.exit(main())
