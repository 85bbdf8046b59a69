"""`p2pcloop picture`: the chunk map of an image, as an SVG file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import IMAGE, FilePath, at_option, file_options, home_option, json_option
from p2pcloop.cli.output import check_place
from p2pcloop.client.picture import Pictured, Pictures
from p2pcloop.client.terminal import check_output_open, say
from p2pcloop.errors import UsageError, storage_error
from p2pcloop.picture.chunk_map import ChunkMap
from p2pcloop.picture.svg import draw_svg
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop picture @key/debian -o map.svg
  p2pcloop picture debian.cloop -o - > map.svg
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@click.option(
    "--output",
    "-o",
    "out",
    required=True,
    type=FilePath(),
    metavar="FILE",
    help="The SVG file, which must not exist yet; - for standard output.",
)
@file_options
@at_option
@home_option
@json_option
def command(ref: str, out: Path, at: int, home: Home, *, as_json: bool) -> None:
    """Draw the chunk map of REF: its device, cell by cell, in an SVG file.

    The first panel shows what is here, on its way, missing, and fetched though the boot did not
    read it. The second shows which peer or server sent it, as far as the p2pcloopd that runs knows.
    The third shows in which order the boot read it. The boot is that of the image's profile.

    Works without p2pcloopd, which then is not started, if the image's maps are here.
    """
    to_stdout = str(out) == "-"
    if to_stdout:
        check_output_open()
    else:
        check_place(out)
    found = Pictures(home).picture(ref, at=at, quiet=as_json or to_stdout)
    version = "" if found.version is None else tr(", version {version}", version=found.version)
    drawn = draw_svg(found.chunk_map, found.name + version)
    if to_stdout:
        sys.stdout.write(drawn)
    else:
        _write(out, drawn)
    if as_json:
        click.echo(to_json(_facts(found, out)), err=to_stdout)
    elif not to_stdout:
        say(tr("{out}: {chunk_map}", out=out, chunk_map=_told(found.chunk_map)))


def _write(out: Path, drawn: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(drawn)
    except FileExistsError as err:
        raise UsageError(
            tr("{out} exists, and is not replaced", out=out), hint="choose another name"
        ) from err
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=out), err) from err


def _facts(found: Pictured, out: Path) -> dict[str, Any]:
    chunk_map = found.chunk_map
    states = {state.name.lower(): n * BLOCK_SIZE for state, n in chunk_map.states.items()}
    return {
        "name": found.name,
        "version": found.version,
        "file": None if str(out) == "-" else str(out),
        "size": chunk_map.blocks * BLOCK_SIZE,
        **states,
        "senders": {name: blocks * BLOCK_SIZE for name, blocks in chunk_map.senders.items()},
        "read": chunk_map.touched * BLOCK_SIZE,
        "read_seconds": chunk_map.seconds,
    }


def _told(chunk_map: ChunkMap) -> str:
    here = sum(chunk_map.senders.values()) * BLOCK_SIZE
    return tr(
        "{here} of a device of {blocks} here",
        here=format_size(here),
        blocks=format_size(chunk_map.blocks * BLOCK_SIZE),
    )
