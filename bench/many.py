"""Eight guests of one image on one node, begun at once, beside one guest: bytes, memory, addresses.

All are in one LAN, in the background, and pinned to one processor of the guests' as ever. A guest
has its address when its first root hands over to its init. The bytes are those that the node has
received, from the wire, once all guests show their login and nothing has come for three seconds.
The memory is that of the block servers: their own pages and those of files, shared ones in parts
(Pss), without the guests' memory, which they map, too.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from bench.guests import LIMIT, LOGIN
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, daemon_pid, fresh_node, run, run_json, seeding, tail
from bench.start import children
from p2pcloop.store.guests import GuestFolder, find_guest
from p2pcloop.store.home import Home
from p2pcloopd.guest.system.initramfs import START_MARK

GUESTS = 8
_QUIET_SECONDS = 3.0
_OPTIONS = ("--mem", "256M", "--net", "lan", "--detach")


def pss_mb(pid: int) -> float:
    """Megabytes of a process, what it shares counted in parts, shared memory (shmem) left out."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = re.findall(r"^Pss_(?:Anon|File):\s*(\d+) kB$", rollup, re.MULTILINE)
    if len(sizes) != 2:
        raise BenchError(f"/proc/{pid}/smaps_rollup has no Pss_Anon and Pss_File")
    return sum(map(int, sizes)) * 1024 / 1e6


def block_servers(boot: int, daemon: int) -> list[int]:
    """The block server of a process that runs a guest: its child that runs the same program, unless
    that is the p2pcloopd which the command has started."""
    program = Path(f"/proc/{boot}/exe").resolve()
    found = []
    for child in children(boot):
        with suppress(OSError):
            if child != daemon and Path(f"/proc/{child}/exe").resolve() == program:
                found.append(child)
    return found


def _until(done: Callable[[], bool], what: str, start: float) -> float:
    """Wait; seconds since `start`."""
    while not done():
        if time.monotonic() - start > LIMIT:
            raise BenchError(f"{what}: not within {LIMIT:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - start


def _printed(home: Path, name: str, text: str) -> bool:
    log = GuestFolder(Home.at(home), name).log_path
    return log.exists() and text in log.read_text(errors="replace")


def _received(bench: Bench, home: Path) -> int:
    told = run_json([bench.p2pcloop, "status", "--json", "--home", home])
    return int(told["received"])


def _received_at_rest(bench: Bench, home: Path, start: float) -> int:
    """What the node has received once nothing comes any more."""
    last, since = -1, 0.0

    def is_quiet() -> bool:
        nonlocal last, since
        now = _received(bench, home)
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since >= _QUIET_SECONDS

    _until(is_quiet, "bytes still come", start)
    return last


def _boot_all(bench: Bench, link: str, count: int) -> Values:
    with fresh_node(bench, "reader") as home:
        names = [f"g{number}" for number in range(1, count + 1)]
        start = time.monotonic()
        with (bench.work / "boots.log").open("wb") as log:
            argv: list[Argument] = [bench.p2pcloop, "boot", link, "--home", home]
            argv += ["--cpu", str(bench.cpu)]
            boots = [
                subprocess.Popen(
                    [*argv, *_OPTIONS, "--name", name],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )
                for name in names
            ]  # fmt: skip
            try:
                return _watch(bench, home, names, boots, start)
            finally:
                for boot in boots:
                    boot.wait(LIMIT)
                run([bench.p2pcloop, "stop", "--all", "--time", "0", "--home", home])


def _watch(
    bench: Bench, home: Path, names: list[str], boots: list[subprocess.Popen[bytes]], start: float
) -> Values:
    def all_print(text: str) -> bool:
        return all(_printed(home, name, text) for name in names)

    if any(boot.wait(LIMIT) for boot in boots):
        raise BenchError(f"a guest did not begin: {tail(bench.work / 'boots.log')}")
    address = _until(partial(all_print, START_MARK), "not all have an address", start)
    login = _until(partial(all_print, LOGIN), "not all have shown their login", start)
    received = _received_at_rest(bench, home, time.monotonic())
    servers = [
        server
        for name in names
        for server in block_servers(find_guest(Home.at(home), name).record.pid, daemon_pid(home))
    ]
    if len(servers) != len(names):
        raise BenchError(f"{len(names)} guests have {len(servers)} block servers")
    memory = sum(map(pss_mb, servers))
    return {"address": address, "login": login, "received": received / 1e6, "block": memory}


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    with seeding(bench) as link:
        yield {
            "one": lambda: _boot_all(bench, link, 1),
            "eight": lambda: _boot_all(bench, link, GUESTS),
        }


MANY = Measure(
    "many",
    f"{GUESTS} guests of one image in a LAN of one node, begun at once, beside one guest",
    {"address": "s", "login": "s", "received": "MB", "block": "MB"},
    [
        Row("bytes of eight guests / of one", ("eight", "received"), 1.05, ("one", "received")),
        Row("block servers of eight guests, Pss", ("eight", "block"), 300),
        Row("all eight have an address", ("eight", "address"), 20),
        Row("all eight show their login", ("eight", "login"), None),
    ],
    _contenders,
)
