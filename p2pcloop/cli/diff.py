"""`p2pcloop diff`: how much two images differ."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from p2pcloop.cli.options import REF, home_option, json_option
from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.progress import progress_bar, waiting_for
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import say
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import never_missing
from p2pcloop.making.difference import Side, compare
from p2pcloop.making.local import open_local
from p2pcloop.making.pack import device_size, odd_length
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import joined, tr

_EPILOG = """
\b
Examples:
  p2pcloop diff knoppix my-knoppix
  p2pcloop diff @key/debian --at 1 @key/debian
"""


@click.command(epilog=_EPILOG)
@click.argument("one", type=REF)
@click.argument("other", type=REF)
@click.option("--at", type=click.IntRange(1), metavar="VERSION", help="The version of ONE.")
@home_option
@json_option
def command(one: str, other: str, at: int | None, home: Home, *, as_json: bool) -> None:
    """Tell how much the images ONE and OTHER differ, by their maps; fetches no content.

    Chunks with the same SHA-256 are equal. Other chunks may still have equal blocks: then the
    output says "at most". Of two states the memory and the devices are compared, too.
    """
    home.create()
    with ExitStack() as stack:
        left = _open(one, at or 0, home, stack, quiet=as_json)
        right = _open(other, 0, home, stack, quiet=as_json)
        with waiting_for("the maps of the images"):
            found = {
                part: compare(left.side, right.side, blocks)
                for part, blocks in _parts(left, right).items()
            }
    blocks = sum(part.blocks for part in found.values())
    answer: dict[str, Any] = {
        "blocks": blocks,
        "bytes": blocks * BLOCK_SIZE,
        "exact": all(part.exact for part in found.values()),
        "sizes": [left.length, right.length],
        "parts": {part: each.blocks for part, each in found.items()},
    }
    if as_json:
        click.echo(to_json(answer))
        return
    for line in _lines(answer):
        say(line)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that is compared.

    Attributes:
        side: its maps.
        length: exact bytes of its disk.
        disk: bytes of its disk in whole blocks.
        machine: of a state.
    """

    side: Side
    length: int
    disk: int
    machine: MachineState | None = None


def _open(ref: str, at: int, home: Home, stack: ExitStack, *, quiet: bool) -> _Image:
    target = resolve_ref(ref, home, at=at)
    if isinstance(target, StoredRef):
        stack.enter_context(target.client)
        opened = open_stored(target, home, stack)
        manifest = target.signed.manifest
        side = Side(opened.image, opened.supply)
        return _Image(side, manifest.disk_length, manifest.disk_size, manifest.machine)
    with progress_bar("reading", quiet=quiet) as progress:
        progress(0, device_size(target))
        image = open_local(target, home.indexes, progress)
    stack.callback(image.close)
    return _Image(Side(image, never_missing), odd_length(target) or image.size, image.size)


def _parts(one: _Image, other: _Image) -> dict[str, range]:
    """The blocks that both have: of the disk, and of two states whose parts lie at the same places
    of the other parts."""
    parts = {"disk": range(min(one.disk, other.disk) // BLOCK_SIZE)}
    left, right = one.machine, other.machine
    if left is None or right is None or left.memory != right.memory:
        return parts
    ends = (left.device_state.blocks, right.device_state.blocks)
    return parts | {"memory": left.memory.blocks, "devices": min(ends, key=len)}


def _lines(answer: dict[str, Any]) -> list[str]:
    before, after = answer["sizes"]
    parts = answer["parts"]
    lines = []
    if before != after:
        lines.append(
            tr(
                "devices of {before} and {after}",
                before=format_size(before),
                after=format_size(after),
            )
        )
    if not answer["blocks"]:
        lines.append(
            tr("no block differs") if before == after else tr("no block differs in what both have")
        )
    else:
        most = "" if answer["exact"] else tr("at most ")
        size = format_size(answer["bytes"])
        lines.append(
            tr(
                "{most}{blocks} blocks of 4 KiB differ: {size}",
                most=most,
                blocks=answer["blocks"],
                size=size,
            )
        )
    if len(parts) > 1:
        found = joined(
            ", ",
            (tr("{count} of the {part}", count=count, part=part) for part, count in parts.items()),
        )
        lines.append(found)
    return lines
