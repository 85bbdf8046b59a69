"""p2pcloop's own boots over a link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.guests import LIMIT, PROMPT
from bench.harness import BenchError
from bench.links.rig import Boot, Contender, Rig, listen_at, node_on, seed
from bench.processes import Argument, run, run_json, tail
from tools.console import Console, ConsoleError

Publish = Callable[[Rig, Path], str]
"""Makes the node of a home, on the seeder, serve an image; returns its link."""

Record = Callable[[Rig, Path, str], None]
"""Boots an image of a home on the seeder; the home keeps the profile."""


@contextmanager
def boot_link(
    rig: Rig, link: str, home: Path, place: Path, more: Sequence[str] = ()
) -> Iterator[Console]:
    """`p2pcloop boot` on the reader, its command and the start of its p2pcloopd included."""
    argv: list[Argument] = [*rig.reader.inside, rig.bench.p2pcloop, "boot", link, "--home", home]
    argv += ["--mem", "512M", "--net", "none", "--cpu", str(rig.bench.cpu), *more]
    log, errors = place / "guest.log", place / "boot.log"
    try:
        with Console([*map(str, argv)], log=log, errors=errors, patience=0) as console:
            yield console
    except ConsoleError as err:
        raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err


@contextmanager
def boot_cold(
    rig: Rig, link: str, place: Path, _limit: float, *, more: Sequence[str] = ()
) -> Iterator[Console]:
    """The same with an empty home; `more` options of `boot`."""
    with (
        node_on(rig.bench, rig.reader, place / "home") as home,
        boot_link(rig, link, home, place, more) as console,
    ):
        yield console


def cold(name: str, about: str, publish: Publish, more: Sequence[str] = ()) -> Contender:
    """Boots with an empty home, of an image that `publish` has a seeder serve; `more` options of
    `boot`."""

    @contextmanager
    def serve(rig: Rig, shared: Path) -> Iterator[Boot]:
        with node_on(rig.bench, rig.seeder, shared / "home") as seeder:
            yield partial(boot_cold, rig, publish(rig, seeder), more=more)

    return Contender(name, about, serve)


def publish_plain(rig: Rig, home: Path) -> str:
    """The cloop as it lies, without a profile."""
    return seed(rig.bench, rig.seeder, home, rig.bench.cloop)["link"]


def record_profile(rig: Rig, home: Path, name: str) -> None:
    """Boot an image on the seeder to its prompt; its home keeps the profile."""
    with booted_to_record(rig, home, name):
        pass


@contextmanager
def booted_to_record(rig: Rig, home: Path, name: str, *more: str) -> Iterator[Console]:
    """The same; the guest stands at its prompt while the block runs. `more` options of `boot`."""
    argv: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "boot", name, "--home", home]
    argv += ["--mem", "512M", "--net", "none", "--cpu", str(rig.bench.cpu), *more]
    log, errors = home.parent / "record.log", home.parent / "boot.log"
    with Console([*map(str, argv)], log=log, errors=errors) as console:
        console.expect(PROMPT, LIMIT)
        yield console
        console.send_line("poweroff")
        console.wait(LIMIT)


def _publish_recorded(rig: Rig, home: Path, record: Record = record_profile) -> str:
    """The same with a profile: that of the bench, else one that is recorded on the seeder."""
    name, kept = seed(rig.bench, rig.seeder, home, rig.bench.cloop)["name"], rig.bench.profile
    profile: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "profile"]
    if kept is not None and kept.exists():
        run([*profile, "attach", name, kept, "--home", home])
    else:
        record(rig, home, name)
        if kept is not None:
            run([*profile, "export", name, kept, "--home", home])
    return publish_plain(rig, home)


def publish_optimised(rig: Rig, home: Path, record: Record = record_profile) -> str:
    """The same, optimised: the blocks that a boot reads lie packed in that order. It is public."""
    _publish_recorded(rig, home, record)
    argv: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "optimize", rig.bench.cloop]
    told = run_json([*argv, "--name", "bench", "--public", "--json", "--home", home])
    if not isinstance(told, dict) or not isinstance(told.get("link"), str):
        raise BenchError("p2pcloop optimize --json printed no link")
    link: str = told["link"]
    return link


@contextmanager
def _warm(rig: Rig, shared: Path) -> Iterator[Boot]:
    home = shared / "reader"
    with node_on(rig.bench, rig.seeder, home):
        # On the seeder's own loopback: over the link the fetch would be slow.
        with node_on(rig.bench, rig.seeder, shared / "seeder") as seeder:
            link = publish_plain(rig, seeder)
            run([*rig.seeder.inside, rig.bench.p2pcloop, "fetch", link, "--home", home])
        stop: list[Argument] = [rig.bench.p2pcloop, "daemon", "stop", "--home", home]
        run(stop)
        listen_at(rig.reader, home)

        @contextmanager
        def boot(place: Path, _limit: float) -> Iterator[Console]:
            try:
                with boot_link(rig, link, home, place) as console:
                    yield console
            finally:
                run(stop)  # cold boots start it, too

        yield boot


COLD = cold(
    "p2pcloop", "p2pcloop boot of a plain cloop by its link, with an empty home", publish_plain
)
RECORDED = cold(
    "p2pcloop-recorded", "the same with a profile attached, recorded by one boot", _publish_recorded
)
PROFILED = cold(
    "p2pcloop-profile", "the same, with `p2pcloop optimize` of that profile", publish_optimised
)
WARM = Contender("p2pcloop-warm", "the same with all of the image here", _warm)
