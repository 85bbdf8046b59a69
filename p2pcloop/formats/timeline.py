"""A boot's timeline: when reads waited, what came, how busy the machine was.

A line of text for each (docs/formats/timeline.md). Lines are appended while the guest boots, so the
last one may be torn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAGIC = "p2pcloop timeline 1"
MAX_SIZE = 1 << 20
"""Bytes of a timeline; nothing is appended to a longer one."""

_MAX_NUMBER = 1e15


@dataclass(frozen=True, slots=True)
class Wait:
    """A read that waited for bytes that were not here.

    Attributes:
        begin: seconds since the timeline's start.
        seconds: how long.
        length: bytes that it waited for, as they are stored.
    """

    begin: float
    seconds: float
    length: int


@dataclass(frozen=True, slots=True)
class Span:
    """What happened between two moments.

    Attributes:
        begin: seconds since the timeline's start.
        seconds: how long.
        came: bytes of the image that came, as they are stored, readahead included.
        busy: the share of all processors of this machine that was in use, 0 to 1.
    """

    begin: float
    seconds: float
    came: int
    busy: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The timeline of a boot.

    Attributes:
        start: when it begins, in seconds of Unix time.
        waits: in the order in which they ended.
        spans: in order, one after the other.
    """

    start: float
    waits: Sequence[Wait]
    spans: Sequence[Span]


def encode_start(start: float) -> bytes:
    """The first line."""
    return f"{MAGIC} {start:.3f}\n".encode()


def encode_wait(wait: Wait) -> bytes:
    """The line of a wait."""
    return f"wait {wait.begin:.3f} {wait.seconds:.3f} {wait.length}\n".encode()


def encode_span(span: Span) -> bytes:
    """The line of a span."""
    return f"span {span.begin:.3f} {span.seconds:.3f} {span.came} {span.busy:.2f}\n".encode()


def decode_timeline(data: bytes) -> Timeline:
    """Read a timeline; a last line without its end is left out.

    Raises:
        FormatError: it is none, or too long.
    """
    if len(data) > 2 * MAX_SIZE:
        raise FormatError(tr("a timeline of {data_count} bytes is too long", data_count=len(data)))
    first, *lines = data.decode("ascii", "replace").split("\n")[:-1] or [""]
    magic, _, start = first.rpartition(" ")
    if magic != MAGIC:
        raise FormatError("it does not begin like a timeline")
    waits, spans = [], []
    for line in lines:
        match line.split(" "):
            case ["wait", begin, seconds, length]:
                waits.append(Wait(_number(begin), _number(seconds), int(_number(length))))
            case ["span", begin, seconds, came, busy]:
                span = Span(_number(begin), _number(seconds), int(_number(came)), _number(busy))
                spans.append(span)
            case _:
                raise FormatError("a line of a timeline is neither a wait nor a span")
    return Timeline(_number(start), waits, spans)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_NUMBER:
        raise FormatError("a line of a timeline has a number that cannot be")
    return value
