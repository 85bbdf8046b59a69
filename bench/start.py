"""What the start of a guest costs on our side: processor time by process, and the first block.

Processor time is that of all p2pcloop processes from the command to the login prompt: the command
and the programs that it ran, its block server, p2pcloopd, and the programs round the sandbox. The
guest's kernel is left out, and so is the node that seeds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.boot import from_storage_daemon
from bench.guests import LIMIT, LOGIN
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, fresh_node, node, run, seeding, tail
from p2pcloop.store.home import Home
from p2pcloopd.guest.system.initramfs import START_MARK
from p2pcloopd.guest.system.kernel import find_kernel
from tools.console import Console, ConsoleError

_MOUNTED = rf"EXT4-fs \(vda\): mounted|{re.escape(START_MARK)}"
"""The first sign on the console that the guest has read a block: its root is mounted."""

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def own_seconds(pid: int) -> float:
    """Processor time of a process and of all threads that it had.

    Raises:
        OSError: there is no such process any more.
    """
    # Its clock, as clock_getcpuclockid(3) makes the number: /proc tells but hundredths of a second.
    return time.clock_gettime(~pid << 3 | 2)


def ended_seconds(pid: int) -> float:
    """Processor time of the children of a process that have ended, and of theirs (proc(5)).

    Raises:
        OSError: there is no such process any more.
    """
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[13]) + int(stat[14])) * _TICK


def children(pid: int) -> list[int]:
    """A process's children that still run; none if it has ended itself."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def command_times(pid: int, kernel: Path, daemon: int | None) -> dict[str, float]:
    """Processor time of `p2pcloop boot` and all that it started, without the guest.

    Args:
        pid: of the command.
        kernel: the program of the guest; all that it started is the guest's, too.
        daemon: a p2pcloopd, which the command may have started.

    Returns:
        `command`, with the programs that it ran, `block` (its block server), `sandbox`, `daemon`.
    """
    times = {"command": own_seconds(pid) + ended_seconds(pid), "block": 0.0, "sandbox": 0.0}
    times["daemon"] = 0.0 if daemon is None else own_seconds(daemon) + ended_seconds(daemon)
    program = Path(f"/proc/{pid}/exe").resolve()

    def add(each: int) -> None:
        runs = Path(f"/proc/{each}/exe").resolve()
        if each != daemon and runs != kernel:
            kind = "block" if runs == program else "sandbox"
            times[kind] += own_seconds(each) + ended_seconds(each)
            for child in children(each):
                add(child)

    for each in children(pid):
        with suppress(OSError):
            add(each)
    return times


def _daemon(home: Path) -> int | None:
    """The p2pcloopd that runs on a home."""
    return Home.at(home).holder() if home.exists() else None


def _boot(bench: Bench, link: str, home: Path) -> Values:
    """Boot to the prompt, and read the processor times there."""
    log, errors = bench.work / "start-guest.log", bench.work / "start-boot.log"
    argv: list[Argument] = [bench.p2pcloop, "boot", link, "--home", home, "--mem", "512M"]
    argv += ["--cpu", str(bench.cpu), "--net", "none"]
    kernel = find_kernel().path.resolve()
    daemon = _daemon(home)
    before = 0.0 if daemon is None else own_seconds(daemon)
    start = time.monotonic()
    try:
        with Console([*map(str, argv)], log=log, errors=errors, patience=0) as console:
            console.expect(_MOUNTED, LIMIT)
            first_block = time.monotonic() - start
            console.expect(LOGIN, LIMIT)
            seconds = time.monotonic() - start
            times = command_times(console.process.pid, kernel, _daemon(home))
            times["daemon"] -= before
    except ConsoleError as err:
        raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err
    values = {"seconds": seconds, "first block": first_block, "processor": sum(times.values())}
    return values | times


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    warm_home = bench.work / "warm"
    stop: list[Argument] = [bench.p2pcloop, "daemon", "stop", "--home", warm_home]
    with seeding(bench) as link, node(bench, warm_home):
        run([bench.p2pcloop, "fetch", link, "--home", warm_home])
        _boot(bench, link, warm_home)  # records the profile

        def cold() -> Values:
            with fresh_node(bench, "reader") as home:
                return _boot(bench, link, home)

        def warm() -> Values:
            run(stop)
            return _boot(bench, link, warm_home)

        def running() -> Values:
            run([bench.p2pcloop, "daemon", "start", "--home", warm_home])
            return _boot(bench, link, warm_home)

        yield {
            "p2pcloop, empty home": cold,
            "p2pcloop, all here": warm,
            "p2pcloop, all here, p2pcloopd runs": running,
            "qemu-storage-daemon": lambda: from_storage_daemon(bench),
        }


_COLD, _WARM = "p2pcloop, empty home", "p2pcloop, all here"

START = Measure(
    "start",
    "boots over loopback: processor time of our processes, and the first block that a guest reads",
    {
        **dict.fromkeys(("seconds", "first block", "processor"), "s"),
        **dict.fromkeys(("command", "block", "sandbox", "daemon"), "s"),
    },
    [
        Row("warm boot / qemu-storage-daemon", (_WARM, "seconds"), 1.1,
            ("qemu-storage-daemon", "seconds")),
        Row("processor time of a warm boot", (_WARM, "processor"), 0.35),
        Row("first block, empty home", (_COLD, "first block"), None),
    ],
    _contenders,
)  # fmt: skip
