"""`tools/bench twice`: bytes that a node receives although they are here.

Each scenario boots or fetches the image from a seeder, with one home. The bytes of its content that
all runs of p2pcloopd received are compared with the bytes that are here at the end. The difference
was received twice, or was lost.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.guests import LIMIT, PROMPT
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import daemon_pid, node, run, run_json, seeding, tail
from tools.console import Console, ConsoleError


class Reader:
    """A home that boots the image, and the bytes that earlier runs of p2pcloopd received."""

    def __init__(self, bench: Bench, link: str, home: Path) -> None:
        self._bench = bench
        self._link = link
        self._home = home
        self._before: Counter[str] = Counter()

    def boot(self, number: int = 0) -> None:
        """Boot to a prompt and power off; without an overlay, so that nothing is written."""
        log = self._home.parent / f"{self._home.name}-guest-{number}.log"
        errors = log.with_suffix(".err")
        argv = [str(self._bench.p2pcloop), "boot", self._link, "--home", str(self._home)]
        argv += ["--mem", "512M", "--cpu", str(self._bench.cpu), "--net", "none"]
        try:
            with Console(argv, log=log, errors=errors) as console:
                console.expect(PROMPT, LIMIT)
                console.send_line("poweroff")
                console.wait(LIMIT)
        except ConsoleError as err:
            raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err

    def fetch(self) -> None:
        """Fetch all of it."""
        run([self._bench.p2pcloop, "fetch", self._link, "--home", self._home])

    def at_once(self, *works: Callable[[], object]) -> None:
        """Do all of these at the same time."""
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(work) for work in works]:
                done.result()

    def restart(self) -> None:
        """Stop p2pcloopd, and let the next command start it."""
        self._before += self._received(self._status())
        run([self._bench.p2pcloop, "daemon", "stop", "--home", self._home])

    def kill(self) -> None:
        """Kill p2pcloopd."""
        self._before += self._received(self._status())
        process = os.pidfd_open(daemon_pid(self._home))
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 30)
        finally:
            os.close(process)

    def values(self) -> Values:
        """Bytes received twice, in reply to a hedged request, and in all."""
        status = self._status()
        received = self._before + self._received(status)
        # A manifest from a mirror is not part of the received content.
        here = sum(
            each["have_bytes"] + each["provisional_bytes"]
            for each in status["torrents"]
            if each["info_hash"] in received
        )
        hedged = sum(each["received_hedged"] for each in status["torrents"])
        total = received.total()
        return {"twice": total - here - hedged, "hedged": hedged, "received": total}

    def _received(self, status: dict[str, Any]) -> Counter[str]:
        return Counter({each["info_hash"]: each["received"] for each in status["torrents"]})

    def _status(self) -> dict[str, Any]:
        told = run_json([self._bench.p2pcloop, "status", "--json", "--home", self._home])
        return dict(told)


def _boots(reader: Reader) -> None:
    reader.boot(1)
    reader.boot(2)


def _boots_at_once(reader: Reader) -> None:
    reader.at_once(lambda: reader.boot(1), lambda: reader.boot(2))


def _boot_during_fetch(reader: Reader) -> None:
    reader.at_once(reader.fetch, reader.boot)


def _fetch_after_boot(reader: Reader) -> None:
    reader.boot()
    reader.fetch()


def _restart(reader: Reader) -> None:
    reader.boot(1)
    reader.restart()
    reader.boot(2)
    reader.fetch()


def _kill(reader: Reader) -> None:
    reader.boot(1)
    reader.kill()
    reader.boot(2)
    reader.fetch()


SCENARIOS: dict[str, Callable[[Reader], None]] = {
    "two boots": _boots,
    "two boots at once": _boots_at_once,
    "boot during fetch": _boot_during_fetch,
    "fetch after boot": _fetch_after_boot,
    "restart between": _restart,
    "SIGKILL between": _kill,
}


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    with seeding(bench) as link:
        homes = iter(range(1000))

        def contender(scenario: Callable[[Reader], None]) -> Callable[[], Values]:
            def measure() -> Values:
                with node(bench, bench.work / f"reader-{next(homes)}") as home:
                    reader = Reader(bench, link, home)
                    try:
                        scenario(reader)
                        return reader.values()
                    except subprocess.SubprocessError as err:
                        raise BenchError(str(err)) from err

            return measure

        yield {name: contender(scenario) for name, scenario in SCENARIOS.items()}


TWICE = Measure(
    "twice",
    "bytes of the image that are received although they are here, in six scenarios",
    dict.fromkeys(("twice", "hedged", "received"), "B"),
    [Row(f"received twice: {name}", (name, "twice"), 0) for name in SCENARIOS],
    _contenders,
)
