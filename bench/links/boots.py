"""Boot every contender over one link, turn about, and count the seconds and bytes of each boot."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.figure import Figure
from bench.guests import LOGIN, boot_initramfs
from bench.harness import Bench, BenchError
from bench.links.contenders import FOREIGN, LOCAL
from bench.links.control import Control, plain_transfer, wait_until_quiet
from bench.links.link import Link
from bench.links.network import Host, network
from bench.links.rig import Boot, Contender, Rig, TookTooLongError
from bench.links.sample import Sample, boot_figures
from bench.links.usage import Meter
from tools.console import Console, NotInTimeError

Tell = Callable[[str], None]

Arrive = Callable[[Console, Host, Path, float], float]
"""Waits until the guest at a console, on a host, is up; gets the boot's directory and the seconds
that it may take. Returns the time.monotonic() of it, or raises NotInTimeError."""


def at_login(console: Console, _reader: Host, _place: Path, limit: float) -> float:
    """Wait for the login prompt."""
    console.expect(LOGIN, limit)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Plan:
    """The boots to make.

    Attributes:
        limit: seconds after which a boot is ended and counts as "more than" that.
        group: the control group of this program, for its processor time.
        patience: seconds to wait for a quiet machine, at most, before each boot.
        local: the control: a boot without a link.
        arrive: what a boot is counted until.
    """

    contenders: Sequence[Contender]
    rounds: int
    limit: float
    group: Path | None
    patience: float = 0.0
    local: Contender = LOCAL
    arrive: Arrive = at_login


@dataclass(slots=True)
class LinkRun:
    """All that was measured on one link.

    Attributes:
        samples: of each contender by its name, in order; the local one is among them.
    """

    link: Link
    control: Control
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def figures(self) -> dict[tuple[str, str], Figure]:
        """What was measured, by the contender's name and by what it is."""
        return {
            (name, figure.what): figure
            for name, samples in self.samples.items()
            for figure in boot_figures(name, str(self.link), samples)
        }


def run_link(link: Link, plan: Plan, bench: Bench, tell: Tell) -> LinkRun:
    """Make the link, run the control, then `plan.rounds` boots of each contender.

    Raises:
        BenchError: one of ours failed; one that is slow does not.
    """
    with network(link, ("seeder", "reader"), bench.work) as (seeder, reader), ExitStack() as stack:
        rig = Rig(bench, boot_initramfs(bench), seeder, reader)
        result = LinkRun(link, plain_transfer(rig, link, bench.work / "transfer.log"))
        control = result.control
        tell(f"{link}: {control.share:.1%} of the rate, {control.round_trip * 1000:.1f} ms")
        boots: dict[str, Boot] = {}
        for contender in (plan.local, *plan.contenders):
            shared = bench.work / contender.name
            shared.mkdir()
            boots[contender.name] = stack.enter_context(contender.serve(rig, shared))

        def tell_here(text: str) -> None:
            tell(f"{link}: {text}")

        result.samples = boot_in_turn(boots, reader, bench.work / "boot", plan, tell_here)
    return result


def boot_in_turn(
    boots: Mapping[str, Boot], reader: Host, place: Path, plan: Plan, tell: Tell
) -> dict[str, list[Sample]]:
    """Boot every contender once in each round; the order turns by one each round.

    A foreign program that fails is left out from then on, with what it had done: btfs dies now and
    then on a busy machine, and the boots of the others are worth keeping.

    Args:
        place: a directory that each boot makes, and that is gone at the end.

    Raises:
        BenchError: one of ours failed.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in boots}
    names = list(boots)
    for number in range(plan.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name not in samples:
                continue
            try:
                sample = boot_once(boots[name], reader, place, plan)
            except BenchError as err:
                if name not in FOREIGN:
                    raise
                del samples[name]
                tell(f"{name} is left out: {err}")
                continue
            samples[name].append(sample)
            tell(f"round {number + 1} of {plan.rounds}: {name}: {_told(sample)}")
    return samples


def boot_once(boot: Boot, reader: Host, place: Path, plan: Plan) -> Sample:
    """Boot and count until the guest is up, or until `plan.limit`; then end it.

    Args:
        place: a directory to make, and to remove at the end.
    """
    place.mkdir()
    running = boot(place, plan.limit)
    wait_until_quiet(plan.group, plan.patience)
    meter, before, start = Meter(plan.group), reader.traffic(), time.monotonic()

    def sample(arrived: float | None) -> Sample:
        seconds = plan.limit if arrived is None else arrived - start
        traffic = reader.traffic().since(before)
        return Sample(seconds, arrived is None, traffic.received, traffic.sent, meter.usage())

    try:
        with running as console:
            left = max(0.0, plan.limit - (time.monotonic() - start))
            try:
                return sample(plan.arrive(console, reader, place, left))
            except NotInTimeError:
                return sample(None)
    except TookTooLongError:
        return sample(None)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _told(sample: Sample) -> str:
    seconds = f"{'more than ' if sample.exceeded else ''}{sample.seconds:.2f} s"
    text = f"{seconds}, {sample.received / 1e6:.2f} MB received, {sample.sent / 1e6:.2f} sent"
    if sample.usage:
        text += f", {sample.usage.own:.1f} s of processor, others {sample.usage.others:.0%}"
    return text
