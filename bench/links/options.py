"""What the commands over slow links have in common on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from bench.links.link import Link


def parser(name: str, about: str, *, rounds: int, epilog: str = "") -> argparse.ArgumentParser:
    """A parser of `tools/bench NAME` with the options that all have."""
    made = argparse.ArgumentParser(
        prog=f"tools/bench {name}",
        description=f"{about} Hosts are network namespaces of this machine; needs root.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--rounds",
        type=within(1, 100, int),
        default=rounds,
        help=f"samples of each (default {rounds})",
    )
    made.add_argument("--tiny", action="store_true", help="busybox instead of Debian")
    made.add_argument("--cpu", type=int, help="the processor for guests (default: the last)")
    made.add_argument("--json", type=Path, help="where the JSON goes (default build/bench/)")
    return made


def within(least: float, most: float, number: Callable[[str], float]) -> Callable[[str], float]:
    """A type for argparse: a number within limits."""

    def parse(text: str) -> float:
        try:
            value = number(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from err
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"it must be {least:g} to {most:g}")
        return value

    return parse


def link(text: str) -> Link:
    """A type for argparse: a link."""
    try:
        return Link.parse(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def links(text: str) -> list[Link]:
    """A type for argparse: links, with commas between."""
    return [link(part) for part in text.split(",")]


def counts(text: str) -> list[int]:
    """A type for argparse: numbers of nodes, ascending, with commas between."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers, as 1,8,16") from err
    if not 1 <= found[0] <= found[-1] <= 64:
        raise argparse.ArgumentTypeError("a crowd has 1 to 64 nodes")
    return found
