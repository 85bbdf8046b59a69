"""`tools/bench download`: a whole image to one client and to several, against plain HTTP."""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench.figure import Bar, Figure, Quantity
from bench.harness import Bench
from bench.links import suite as words
from bench.links.control import doubts_of_usage
from bench.links.network import Host, network
from bench.links.rig import listen_at, node_on, seed
from bench.links.suite import Suite, run_suite
from bench.links.torrents import tracker, web_server
from bench.links.usage import Meter, Usage
from bench.processes import Argument, run

_LINK, _CLIENTS = "8748", "1,4"
_LIMIT = 1800.0
_PORT = 6881

Fetch = Callable[[Host, Path], AbstractContextManager[Callable[[], None]]]
"""Prepares a host for a download to a path when entered, and gives the download."""


@dataclass(frozen=True, slots=True)
class Download:
    """A download by all clients together.

    Attributes:
        seconds: until the last had all of it.
        sent: bytes at the server's interface.
    """

    seconds: float
    sent: int
    usage: Usage | None


Downloads = Mapping[int, Mapping[str, Sequence[Download]]]
"""By the number of clients and by their program, one for each round."""


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = "Fetch a whole image to clients, by p2pcloop and by HTTP from the same host."
    parser = words.parser("download", about, rounds=3)
    parser.add_argument(
        "--link", type=words.link, default=words.link(_LINK), help=f"of each host ({_LINK})"
    )
    parser.add_argument(
        "--clients",
        type=words.counts,
        default=words.counts(_CLIENTS),
        metavar="N,...",
        help=f"how many at once (default {_CLIENTS})",
    )
    return parser.parse_args(args)


def main(args: Sequence[str]) -> int:
    """Download, print the table, write the JSON; an exit code as `run_suite`."""
    return run_suite("download", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    bench = suite.bench
    names = ["server", *(f"c{number}" for number in range(options.clients[-1]))]
    found: dict[int, dict[str, list[Download]]] = {}
    with (
        network(options.link, names, bench.work) as (host, *clients),
        _fetches(bench, host, clients) as fetches,
    ):
        for number in range(options.rounds):
            for count in options.clients:
                for name in sorted(fetches, reverse=bool(number % 2)):
                    one = _download(fetches[name], host, clients[:count], suite)
                    found.setdefault(count, {}).setdefault(name, []).append(one)
                    told = f"{count} at once, round {number + 1} of {options.rounds}: {name}"
                    suite.tell(f"{told}: {one.seconds:.2f} s, {one.sent / 1e6:.2f} MB sent")
    judged = bars(found)
    suite.write(figures(found), judged)
    suite.console.print(table(found))
    return suite.judge(judged)


@contextmanager
def _fetches(bench: Bench, host: Host, clients: Sequence[Host]) -> Iterator[dict[str, Fetch]]:
    """Serve the cloop in both ways; a tracker on the same host introduces p2pcloop's clients."""
    root, tracking = bench.work / "www", bench.work / "tracking"
    root.mkdir()
    tracking.mkdir()
    (root / "image").symlink_to(bench.cloop)
    hosts = (host, *clients)
    with (
        web_server(host, root, bench.work) as url,
        tracker(host, [(each, _PORT) for each in hosts], tracking) as announce,
        node_on(bench, host, bench.work / "seeder") as home,
    ):
        listen_at(host, home, _PORT, f'[discovery]\nannounce_trackers = ["{announce}"]\n')
        link = seed(bench, host, home, bench.cloop, "--public")["link"]

        @contextmanager
        def by_p2pcloop(client: Host, place: Path) -> Iterator[Callable[[], None]]:
            with node_on(bench, client, place):
                listen_at(client, place, _PORT, "[discovery]\ntrackers = true\n")
                argv: list[Argument] = [*client.inside, bench.p2pcloop, "fetch", link]
                yield lambda: _run([*argv, "--home", place])

        @contextmanager
        def by_http(client: Host, place: Path) -> Iterator[Callable[[], None]]:
            argv = [*client.inside, "curl", "-sSf", "--noproxy", "*", f"{url}image", "-o"]
            yield lambda: _run([*argv, place])
            place.unlink()

        yield {"p2pcloop": by_p2pcloop, "HTTP": by_http}


def _run(argv: Sequence[Argument]) -> None:
    run(argv, limit=_LIMIT)


def _download(fetch: Fetch, host: Host, clients: Sequence[Host], suite: Suite) -> Download:
    """Download by all clients at once; a node that is finished seeds to the others."""
    work = suite.bench.work
    with ExitStack() as stack, ThreadPoolExecutor(len(clients)) as pool:
        downloads = [stack.enter_context(fetch(client, work / client.name)) for client in clients]
        meter, before, start = Meter(suite.group), host.traffic(), time.monotonic()
        for done in [pool.submit(download) for download in downloads]:
            done.result()
        seconds = time.monotonic() - start
        found = Download(seconds, host.traffic().since(before).sent, meter.usage())
    for client in clients:
        shutil.rmtree(work / client.name, ignore_errors=True)
    return found


def table(found: Downloads) -> Table:
    """Medians for each number of clients."""
    shown = Table("at once", "by", "s until the last has it", "MB sent by the server")
    for count, each in found.items():
        for name, rounds in each.items():
            sent = statistics.median(one.sent for one in rounds)
            shown.add_row(str(count), name, f"{_seconds(rounds):.2f}", f"{sent / 1e6:.2f}")
    return shown


def _seconds(rounds: Sequence[Download]) -> float:
    return statistics.median(one.seconds for one in rounds)


def figures(found: Downloads) -> list[Figure]:
    """Everything for the report."""
    made = []
    for count, each in found.items():
        where = "1 client" if count == 1 else f"{count} clients"
        for name, rounds in each.items():
            seconds = tuple(one.seconds for one in rounds)
            sent = tuple(float(one.sent) for one in rounds)
            made.append(Figure("until the last client has all", name, "s", seconds, where))
            made.append(Figure("sent by the server", name, "B", sent, where))
    return made


def bars(found: Downloads) -> list[Bar]:
    """p2pcloop's time by that of HTTP: at most 1.1 for one client, sooner for several."""
    made = []
    for count, each in found.items():
        usages = [one.usage for rounds in each.values() for one in rounds]
        doubts = tuple(doubts_of_usage(f"{count} downloaded", usages))
        ours, base = (Quantity(_seconds(each[name])) for name in ("p2pcloop", "HTTP"))
        title = f"p2pcloop / HTTP, clients at once: {count}"
        made.append(Bar(title, "s", ours, base, 1.1 if count == 1 else 1.0, doubts=doubts))
    return made
