"""What a crowd takes whose nodes are machines of their own, by what one machine for all measures.

`tools/bench crowd` runs all nodes on one machine: from some number on its processors are what is
slow, and 64 nodes are out of its reach. The model has three costs, each a straight line through the
crowds that were measured: the processor time of a node, that of the seeder's p2pcloopd, and the
bytes that the seeder sends. A boot in a crowd of machines of their own then takes

- as long as one alone, and as much longer as its node has more to do (as if all of that was waited
  for, one after the other: a limit from above);
- at least as long as the seeder's p2pcloopd has to do, which is one thread;
- at least as long as the seeder's bytes take on its line.

On this one machine it takes at least all processor time by the processors that other work leaves.
That can be compared with what was measured: so the model is checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import linear_regression

from rich.table import Table

COUNTS = (1, 8, 16, 64)
"""The crowds that are told of."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A crowd of one size, the medians of all rounds.

    Attributes:
        count: its nodes.
        last: seconds of the last one.
        node: processor seconds of one node, p2pcloopd and block server.
        seeder: processor seconds of the seeder's p2pcloopd.
        sent: bytes that the seeder sent.
        own: processor seconds of all, the bench included.
        others: share of the processors that other work took.
    """

    count: int
    last: float
    node: float
    seeder: float
    sent: float
    own: float
    others: float


class CrowdModel:
    """Predicts the last node of a crowd."""

    def __init__(self, measured: Sequence[Measured], rate: float) -> None:
        """Fit the costs.

        Args:
            measured: at least two sizes, one of them a node alone.
            rate: bytes a second of the seeder's line.
        """
        self.measured = {each.count: each for each in measured}
        self.node = self._line(lambda each: each.node)
        self.seeder = self._line(lambda each: each.seeder)
        self.sent = self._line(lambda each: each.sent)
        self._rate = rate

    def last(self, count: int) -> float:
        """Seconds of the last of so many nodes, each on a machine of its own."""
        more = max(0.0, self.node(count) - self.node(1))
        return max(self.measured[1].last + more, self.seeder(count), self.sent(count) / self._rate)

    def here(self, count: int, processors: int) -> float:
        """The same for a crowd that was measured, all on one machine."""
        each = self.measured[count]
        return max(self.last(count), each.own / (processors * (1 - each.others)))

    def _line(self, cost: Callable[[Measured], float]) -> Callable[[int], float]:
        """The straight line through a cost of the crowds that were measured."""
        slope, start = linear_regression(self.measured, [*map(cost, self.measured.values())])
        return lambda count: start + slope * count


def model_table(model: CrowdModel) -> Table:
    """Measured and predicted, by the number of nodes."""
    shown = Table(
        *("nodes", "measured s", "model, here s", "model, machines of their own s"),
        *("node's processor s", "seeder's processor s", "seeder sends MB"),
    )
    for count in sorted({*model.measured, *COUNTS}):
        known = model.measured.get(count)
        shown.add_row(
            str(count),
            f"{known.last:.1f}" if known else "",
            f"{model.here(count, os.cpu_count() or 1):.1f}" if known else "",
            f"{model.last(count):.1f}",
            f"{model.node(count):.2f}",
            f"{model.seeder(count):.2f}",
            f"{model.sent(count) / 1e6:.2f}",
        )
    return shown
