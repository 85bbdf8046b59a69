"""What crosses the wire for a cold boot, against what such a boot cannot do without.

The least is taken apart from p2pcloop: the same image is booted from nbdkit, whose log tells each
read, and the compressed sizes of the cloop blocks that these touch are added up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.guests import LIMIT, PROMPT
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import node, seeding, tail
from bench.trace import record
from tools.boot_report import ReportError, read_report
from tools.console import Console, ConsoleError

_HEADER = 128  # a cloop file begins with a shell script of this size; then two 32-bit numbers


def touched_bytes(cloop: Path, reads: list[tuple[int, int]]) -> int:
    """Compressed bytes of the blocks of a V2.0 cloop that reads (offset, length) touch."""
    with cloop.open("rb") as file:
        block_size, count = struct.unpack(">II", file.read(_HEADER + 8)[_HEADER:])
        offsets = struct.unpack(f">{count + 1}Q", file.read(8 * (count + 1)))
    touched = {
        block
        for offset, length in reads
        for block in range(offset // block_size, (offset + length - 1) // block_size + 1)
    }
    return sum(offsets[block + 1] - offsets[block] for block in touched)


def _to_the_end(console: Console) -> None:
    """From the start to power off, through a shell prompt: the same in both contenders."""
    console.expect(PROMPT, LIMIT)
    console.send_line("poweroff")
    console.wait(LIMIT)


def _traced(bench: Bench) -> Values:
    reads = [(read.offset, read.length) for read in record(bench, _to_the_end)]
    return {"bytes": touched_bytes(bench.cloop, reads), "read": sum(n for _, n in reads)}


def _received(bench: Bench, link: str, home: Path) -> Values:
    log, errors = bench.work / "p2pcloop-guest.log", bench.work / "p2pcloop-boot.log"
    report = bench.work / "report.json"
    report.unlink(missing_ok=True)
    argv = [str(bench.p2pcloop), "boot", link, "--home", str(home), "--mem", "512M"]
    argv += ["--cpu", str(bench.cpu)]
    argv += ["--net", "none", "--report", str(report)]
    try:
        with Console(argv, log=log, errors=errors) as console:
            _to_the_end(console)
        return {"bytes": read_report(report).bytes_received}
    except (ConsoleError, ReportError) as err:
        raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    with seeding(bench) as link:
        homes = iter(range(1000))

        def received() -> Values:
            with node(bench, bench.work / f"reader-{next(homes)}") as home:
                return _received(bench, link, home)

        yield {"p2pcloop": received, "touched chunks": lambda: _traced(bench)}


BYTES = Measure(
    "boot-bytes",
    "bytes that cross for a cold boot, against the compressed chunks that it touches",
    [Row("bytes received / touched", "B", ("p2pcloop", "bytes"), 1.3, ("touched chunks", "bytes"))],
    _contenders,
)
