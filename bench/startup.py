"""How long `p2pcloop --help` takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.processes import run


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    def help_text() -> Values:
        start = time.monotonic()
        run([bench.p2pcloop, "--help"])
        return {"seconds": time.monotonic() - start}

    help_text()  # compiles modules that were never imported
    yield {"p2pcloop": help_text}


HELP = Measure(
    "help",
    "p2pcloop --help",
    {"seconds": "s"},
    [Row("p2pcloop --help", ("p2pcloop", "seconds"), 0.2)],
    _contenders,
)
