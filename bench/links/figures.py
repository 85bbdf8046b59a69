"""From the samples of a link to what the report says: medians, the limit, ratios, bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.links.bar import Bar
from bench.links.boots import LinkRun
from bench.links.contenders import LOCAL, PLAIN, PROFILED, RIVALS, WARM
from bench.links.control import doubts_of_local, doubts_of_others, doubts_of_transfer
from bench.links.least import Least
from bench.links.link import Link
from bench.links.sample import Figure, Sample, median_bytes, median_seconds


@dataclass(frozen=True, slots=True)
class Line:
    """One contender on one link, its medians.

    Attributes:
        sent: bytes.
        cpu: seconds of processor time; None where unknown.
        doubts: why no ratio with it is printed.
    """

    name: str
    seconds: Figure
    received: Figure
    sent: float
    cpu: float | None
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """One link.

    Attributes:
        limit: seconds that the link and the guest themselves take: the larger of the local boot
            and W by the rate.
        lines: by the contenders' names.
        link_doubts: why no ratio of this link may be printed.
    """

    link: Link
    limit: float
    least: Least
    lines: dict[str, Line]
    link_doubts: tuple[str, ...] = ()

    def doubts(self, *names: str) -> tuple[str, ...]:
        """Why no ratio of these contenders, or of one and the limit, may be printed."""
        of_names = (doubt for name in (LOCAL.name, *names) for doubt in self.lines[name].doubts)
        return tuple(dict.fromkeys((*self.link_doubts, *of_names)))


def figures(run: LinkRun, least: Least) -> LinkFigures:
    """Medians of all contenders of a link, and its limit."""
    local = run.samples[LOCAL.name]
    lines = {name: _line(name, samples) for name, samples in run.samples.items()}
    limit = max(lines[LOCAL.name].seconds.value, least.packed / run.link.rate)
    doubts = doubts_of_transfer(run.link, run.control) + doubts_of_local(local)
    return LinkFigures(run.link, limit, least, lines, tuple(doubts))


def _line(name: str, samples: list[Sample]) -> Line:
    usages = [sample.usage for sample in samples]
    own = [usage.own for usage in usages if usage]
    return Line(
        name,
        median_seconds(samples),
        median_bytes(samples),
        statistics.median(sample.sent for sample in samples),
        statistics.median(own) if own else None,
        tuple(doubts_of_others(f"{name} booted", usages)),
    )


def bars(found: LinkFigures) -> list[Bar]:
    """The bars that were measured on this link."""
    lines = found.lines
    return [
        *(bar for name, limits in _LIMITS.items() if name in lines for bar in limits(found)),
        *_sooner(found),
        *_gap(found),
    ]


def _profiled(found: LinkFigures) -> Iterator[Bar]:
    yield _of_limit(found, PROFILED, 1.15)
    yield _of_bytes(found, PROFILED, "W", found.least.packed, 1.1)


def _plain(found: LinkFigures) -> Iterator[Bar]:
    yield _of_limit(found, PLAIN, 2 * 1.15)
    yield _of_bytes(found, PLAIN, "the compressed chunks touched", found.least.touched, 1.3)


_LIMITS: dict[str, Callable[[LinkFigures], Iterator[Bar]]] = {PROFILED: _profiled, PLAIN: _plain}


def _of_limit(found: LinkFigures, name: str, most: float) -> Bar:
    seconds = found.lines[name].seconds
    figure = Figure(seconds.value / found.limit, seconds.bound)
    return Bar(f"{name}: time / limit", figure, most, found.doubts(name))


def _of_bytes(found: LinkFigures, name: str, of: str, least: int, most: float) -> Bar:
    received = found.lines[name].received
    figure = Figure(received.value / least, received.bound)
    return Bar(f"{name}: bytes received / {of}", figure, most, ())


def _sooner(found: LinkFigures) -> Iterator[Bar]:
    for rival in RIVALS:
        if PLAIN in found.lines and rival in found.lines:
            ours, theirs = found.lines[PLAIN].seconds, found.lines[rival].seconds
            figure = Figure(ours.value / theirs.value, ours.bound)
            yield Bar(f"{PLAIN}: time / {rival}", figure, 1.0, found.doubts(PLAIN, rival))


def _gap(found: LinkFigures) -> Iterator[Bar]:
    if not found.link.delay or not {PROFILED, WARM} <= set(found.lines):
        return
    cold, warm = found.lines[PROFILED].seconds, found.lines[WARM].seconds
    figure = Figure(cold.value / warm.value, cold.bound)
    yield Bar(f"{PROFILED}: time / a warm boot", figure, 2.0, found.doubts(PROFILED, WARM))
    if PLAIN in found.lines:
        plain = found.lines[PLAIN].seconds
        left = (cold.value - warm.value) / (plain.value - warm.value)
        doubts = found.doubts(PLAIN, PROFILED, WARM)
        title = "share of the gap from a warm to a cold boot that a profile leaves"
        yield Bar(title, Figure(left, cold.bound), 0.15, doubts)
