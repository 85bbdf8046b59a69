"""How long `p2pcloop --help` and `p2pcloop ps` take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.processes import run
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.home import Home

_GUESTS = 50
_RUNNING = 40


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    def help_text() -> Values:
        return _timed(bench, "--help")

    help_text()  # compiles modules that were never imported
    yield {"p2pcloop": help_text}


@contextmanager
def _with_guests(bench: Bench) -> Iterator[Contenders]:
    home = Home.at(bench.work / "home")
    home.create()

    def list_all() -> Values:
        return _timed(bench, "ps", "--all", "--home", str(home.root))

    with ExitStack() as stack:
        for number in range(_GUESTS):
            _make_guest(stack, home, number)
        list_all()
        yield {"p2pcloop": list_all}


def _make_guest(stack: ExitStack, home: Home, number: int) -> None:
    """A record as a guest's process writes it, whose lock this process holds if it runs."""
    own = stack.enter_context(OwnGuest(home, f"guest-{number}"))
    facts = {"ref": "debian", "image": f"@{'a' * 52}/debian", "version": 1, "overlay": None}
    own.begin(**facts, memory=512 << 20, network="user", ports=["2222:22"])
    own.keep()
    own.folder.waiting_path.write_text("no peer reachable; tried: 192.0.2.1:6881\n")
    if number >= _RUNNING:
        own.end(reason="poweroff", exit_code=0, fetched=1 << 20)
        own.close()


def _timed(bench: Bench, *words: str) -> Values:
    start = time.monotonic()
    run([bench.p2pcloop, *words])
    return {"seconds": time.monotonic() - start}


HELP = Measure(
    "help",
    "p2pcloop --help",
    {"seconds": "s"},
    [Row("p2pcloop --help", ("p2pcloop", "seconds"), 0.2)],
    _contenders,
)

PS = Measure(
    "ps",
    f"p2pcloop ps --all, of {_GUESTS} guests, of which {_RUNNING} run",
    {"seconds": "s"},
    [Row("p2pcloop ps", ("p2pcloop", "seconds"), 0.3)],
    _with_guests,
)
