"""From the boots over a link to its figures: medians, the limit, ratios, bars, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rich.table import Table

from bench.figure import HIDDEN, Bar, Figure, Quantity
from bench.links.boots import LinkRun
from bench.links.contenders import LOCAL, PLAIN, PROFILED, RIVALS, WARM
from bench.links.control import doubts_of_local, doubts_of_others, doubts_of_transfer
from bench.links.least import Least
from bench.links.link import Link
from bench.links.sample import PROCESSOR, RECEIVED, SENT, TIME


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """The boots over one link.

    Attributes:
        limit: seconds that the link and the guest themselves take: the larger of the local boot
            and W by the rate.
        figures: of every contender, by name and thing.
        doubts_of: by contender, why no ratio with it is shown.
        link_doubts: why no ratio of this link is shown.
    """

    link: Link
    limit: float
    least: Least
    figures: Mapping[tuple[str, str], Figure]
    doubts_of: Mapping[str, tuple[str, ...]]
    link_doubts: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The contenders."""
        return list(self.doubts_of)

    def median(self, name: str, what: str) -> Quantity:
        """The median of one figure."""
        return self.figures[name, what].median

    def doubts(self, *names: str) -> tuple[str, ...]:
        """Why no ratio of these contenders, or of one and the limit, may be shown."""
        of_names = (doubt for name in (LOCAL.name, *names) for doubt in self.doubts_of[name])
        return tuple(dict.fromkeys((*self.link_doubts, *of_names)))

    def all_figures(self) -> list[Figure]:
        """Everything for the report."""
        where = str(self.link)
        return [
            *self.figures.values(),
            Figure(TIME, "limit, max(T, W / rate)", "s", (self.limit,), where),
            Figure(RECEIVED, "W", "B", (float(self.least.packed),), where),
            Figure(RECEIVED, "chunks touched", "B", (float(self.least.touched),), where),
        ]


def link_figures(run: LinkRun, least: Least) -> LinkFigures:
    """The figures of all contenders of a link, and its limit."""
    local = run.samples[LOCAL.name]
    figures = run.figures()
    doubts_of = {
        name: tuple(doubts_of_others(f"{name} booted", [sample.usage for sample in samples]))
        for name, samples in run.samples.items()
    }
    limit = max(figures[LOCAL.name, TIME].median.value, least.packed / run.link.rate)
    doubts = doubts_of_transfer(run.link, run.control) + doubts_of_local(local)
    return LinkFigures(run.link, limit, least, figures, doubts_of, tuple(doubts))


def bars(found: LinkFigures) -> list[Bar]:
    """The bars that were measured on this link."""
    return [
        *(bar for name, limits in _LIMITS.items() if name in found.names for bar in limits(found)),
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
    title = f"{name}: time / limit, {found.link}"
    limit = Quantity(found.limit)
    return Bar(title, "s", found.median(name, TIME), limit, most, doubts=found.doubts(name))


def _of_bytes(found: LinkFigures, name: str, of: str, least: int, most: float) -> Bar:
    title = f"{name}: bytes received / {of}, {found.link}"
    return Bar(title, "B", found.median(name, RECEIVED), Quantity(least), most)


def _sooner(found: LinkFigures) -> Iterator[Bar]:
    for rival in RIVALS:
        if {PLAIN, rival} <= set(found.names):
            yield _against(found, PLAIN, rival, rival, 1.0)


def _against(found: LinkFigures, name: str, other: str, title: str, most: float) -> Bar:
    return Bar(
        f"{name}: time / {title}, {found.link}",
        "s",
        found.median(name, TIME),
        found.median(other, TIME),
        most,
        doubts=found.doubts(name, other),
    )


def _gap(found: LinkFigures) -> Iterator[Bar]:
    if not found.link.delay or not {PROFILED, WARM} <= set(found.names):
        return
    yield _against(found, PROFILED, WARM, "a warm boot", 2.0)
    if PLAIN in found.names:
        plain, cold, warm = (found.median(name, TIME) for name in (PLAIN, PROFILED, WARM))
        yield Bar(
            f"share of the gap from a warm to a cold boot that a profile leaves, {found.link}",
            "s",
            Quantity(cold.value - warm.value, cold.bound),
            Quantity(plain.value - warm.value, plain.bound),
            0.15,
            doubts=found.doubts(PLAIN, PROFILED, WARM),
        )


def table(found: LinkFigures) -> Table:
    """Each contender's medians, and ratios unless something casts doubt on them."""
    ours = [name for name in (PLAIN, PROFILED) if name in found.names]
    least = found.least
    title = (
        f"{found.link}: limit {found.limit:.1f} s"
        f" (W {least.packed / 1e6:.2f} MB, chunks touched {least.touched / 1e6:.2f} MB)"
    )
    shown = Table("boot", "s", "/ limit", "MB received", "/ W", "MB sent", "CPU s", title=title)
    for name in ours:
        shown.add_column(f"{name} / it")
    for name in found.names:
        shown.add_row(*_row(found, name), *(_ratio(found, each, name) for each in ours))
    return shown


def _row(found: LinkFigures, name: str) -> tuple[str, ...]:
    seconds, received = found.median(name, TIME), found.median(name, RECEIVED)
    processor = found.figures.get((name, PROCESSOR))
    return (
        name,
        seconds.text(),
        HIDDEN if found.doubts(name) else (seconds / Quantity(found.limit)).text(2),
        (received / Quantity(1e6)).text(2),
        (received / Quantity(found.least.packed)).text(2),
        f"{found.median(name, SENT).value / 1e6:.2f}",
        "" if processor is None else processor.median.text(),
    )


def _ratio(found: LinkFigures, ours: str, name: str) -> str:
    if name == ours:
        return ""
    if found.doubts(ours, name):
        return HIDDEN
    return ratio(found.median(ours, TIME), found.median(name, TIME))


def ratio(ours: Quantity, theirs: Quantity) -> str:
    """How many times ours is theirs: `0.35`; `< 0.35` if theirs is a bound, `> 2.1` if ours is."""
    quotient = f"{ours.value / theirs.value:.2f}"
    match ours.bound, theirs.bound:
        case False, False:
            return quotient
        case True, False:
            return f"> {quotient}"
        case False, True:
            return f"< {quotient}"
        case _:
            return "unknown"
