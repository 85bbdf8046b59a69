"""Random reads over a whole cloop through NBD, by fio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.benchmarks.harness import Bench, BenchError, Contenders, Measure, Row, Values
from tools.benchmarks.processes import Argument, run_json, server

SECONDS = 8
DEPTH = 16


def read_rate(socket: Path) -> float:
    """4 KiB random reads a second from the NBD server at `socket`."""
    told = run_json(
        [
            *("fio", "--name=reads", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}"),
            *("--rw=randread", "--bs=4k", f"--iodepth={DEPTH}", "--randrepeat=1"),
            *("--time_based", f"--runtime={SECONDS}", "--output-format=json"),
        ]
    )
    try:
        return float(told["jobs"][0]["read"]["iops"])
    except (KeyError, IndexError, TypeError) as err:
        raise BenchError(f"fio told no rate: {err}") from err


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    ours, theirs = bench.work / "ours.sock", bench.work / "theirs.sock"

    def rate(argv: list[Argument], socket: Path) -> Values:
        with server(argv, socket, bench.work / f"{socket.stem}.log"):
            return {"iops": read_rate(socket)}

    block: list[Argument] = [bench.p2pcloop, "block", bench.cloop, "--nbd", f"unix:{ours}"]
    qemu: list[Argument] = ["qemu-nbd", "-f", "cloop", "--read-only", "--persistent"]
    qemu += ["--shared=4", f"--socket={theirs}", bench.cloop]
    yield {
        "p2pcloop": lambda: rate(block, ours),
        "qemu-nbd -f cloop": lambda: rate(qemu, theirs),
    }


RANDOM = Measure(
    "nbd-random",
    "4 KiB random reads over the whole cloop by fio over NBD, against qemu-nbd -f cloop",
    [
        Row(
            "random 4 KiB reads / qemu-nbd",
            "1/s",
            ("p2pcloop", "iops"),
            3.0,
            ("qemu-nbd -f cloop", "iops"),
            at_least=True,
        )
    ],
    _contenders,
)
