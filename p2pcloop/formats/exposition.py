"""Prometheus' text format 0.0.4, as a server of metrics writes it.

https://prometheus.io/docs/instrumenting/exposition_formats/ : a line of help and one of the type
for each metric, then a line for each of its samples. Every program that reads metrics reads this
form; OpenMetrics 1.0 has to be asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from p2pcloop.frozen import dataclass

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: what a number is.

    Attributes:
        name: with its unit behind it, and `_total` behind that of a counter.
        kind: a counter never falls while a program runs.
        about: for people, a line.
        labels: their names.
    """

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    labels: tuple[str, ...] = ()


Samples = Mapping[tuple[str, ...], float]
"""Of one metric: its values, by the values of its labels."""


def write_metrics(found: Iterable[tuple[Metric, Samples]]) -> str:
    """Write metrics, in the order given; one without samples is left out."""
    return "".join(_write(metric, samples) for metric, samples in found if samples)


def _write(metric: Metric, samples: Samples) -> str:
    lines = [
        f"# HELP {metric.name} {_escaped(metric.about)}",
        f"# TYPE {metric.name} {metric.kind}",
    ]
    for values, number in samples.items():
        pairs = ",".join(
            f'{label}="{_escaped(value, quotes=True)}"'
            for label, value in zip(metric.labels, values, strict=True)
        )
        lines.append(f"{metric.name}{f'{{{pairs}}}' if pairs else ''} {_number(number)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    """As Go's ParseFloat reads it; whole numbers in full."""
    return str(value) if isinstance(value, int) else repr(float(value))
