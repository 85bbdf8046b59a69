"""`tools/bench kept`: the worth of the profile of one version for a boot of the next.

The next version is the demo image with some 30 MB of packages installed in a guest, published on
top of the optimised one. It is booted by its link with an empty home in three ways: with the
profile of the version before, which it has anyway; with its own, recorded by a boot; without one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.figure import Bar, Quantity
from bench.guests import LIMIT, boot_initramfs
from bench.links import suite as words
from bench.links.boots import Plan, boot_once
from bench.links.control import doubts_of_others
from bench.links.network import network
from bench.links.ours import boot_cold, publish_optimised, record_profile
from bench.links.rig import Boot, Rig, node_on
from bench.links.sample import Sample, boot_figures
from bench.links.suite import Suite, run_suite
from bench.processes import Argument, run, run_json
from bench.upgrade import PLACE
from bench.upgrade_pair import upgrade_pair

_BEFORE, _OWN, _NONE = "of the version before", "its own", "none"


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = "Boot the next version of an image with the profile of the one before."
    return words.parser("kept", about, rounds=5, link_of="each host").parse_args(args)


def main(args: Sequence[str]) -> int:
    """Boot, print the table, write the JSON; an exit code as `run_suite`."""
    return run_suite("kept", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    bench = suite.bench
    pair = upgrade_pair(bench, PLACE)
    suite.tell(f"packages: {sum(pair.packages.values()) / 1e6:.1f} MB")
    plan = Plan((), options.rounds, LIMIT, suite.group, patience=60.0)
    samples: dict[str, list[Sample]] = {_BEFORE: [], _OWN: [], _NONE: []}
    with (
        network(options.link, ("seeder", "reader"), bench.work) as (seeder, reader),
        node_on(bench, seeder, bench.work / "seeder") as home,
    ):
        rig = Rig(bench, boot_initramfs(bench), seeder, reader)
        told = _publish_next(rig, home, pair.new)
        link, own = told["link"], _with_own_profile(rig, home, told["name"])
        ways: dict[str, Boot] = {
            _BEFORE: partial(boot_cold, rig, link),
            _OWN: partial(boot_cold, rig, own),
            _NONE: partial(boot_cold, rig, link, more=["--no-profile"]),
        }
        for number in range(options.rounds):
            for name, boot in ways.items():
                sample = boot_once(boot, reader, bench.work / "boot", plan)
                samples[name].append(sample)
                line = f"{sample.seconds:.2f} s, {sample.received / 1e6:.2f} MB"
                suite.tell(f"round {number + 1} of {options.rounds}: profile {name}: {line}")
    found = [
        figure
        for name, boots in samples.items()
        for figure in boot_figures(f"profile {name}", str(options.link), boots)
    ]
    suite.write(found, [bar(samples)])
    return suite.judge([bar(samples)])


def _publish_next(rig: Rig, home: Path, image: Path) -> dict[str, str]:
    """Serve the optimised image and its next version; returns the JSON of `publish`."""
    publish_optimised(rig, home)
    argv: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "publish", image]
    told: dict[str, str] = run_json([*argv, "--name", "bench", "--json", "--home", home])
    return told


def _with_own_profile(rig: Rig, home: Path, name: str) -> str:
    """Boot the newest version on the seeder and attach its profile; returns the new link."""
    record_profile(rig, home, name)
    tool: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "profile"]
    profile = home.parent / "own.profile"
    run([*tool, "export", name, profile, "--home", home])
    told = run_json([*tool, "attach", name, profile, "--json", "--home", home])
    link: str = told["link"]
    return link


def bar(samples: dict[str, list[Sample]]) -> Bar:
    """How much of the time that its own profile saves is lost with that of the version before."""
    before, own, none = (
        statistics.median(sample.seconds for sample in samples[name])
        for name in (_BEFORE, _OWN, _NONE)
    )
    usages = [sample.usage for found in samples.values() for sample in found]
    return Bar(
        "gain lost with the profile before",
        "s",
        Quantity(before - own),
        Quantity(none - own),
        0.2,
        doubts=tuple(doubts_of_others("boots ran", usages)),
    )
