"""`p2pcloop ps`: the guests of this home."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.store.guests import GuestState, list_guests
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_duration, format_size

_EPILOG = """
\b
Examples:
  p2pcloop ps
  p2pcloop ps -a                    # also those that have ended and were kept
  p2pcloop ps --json | jq -r '.guests[] | select(.waiting).name'
"""

_HEAD = ("NAME", "IMAGE", "OVERLAY", "MEMORY", "NETWORK", "FETCHED", "STATE")
_ENDINGS = {"poweroff": "shut down", "reboot": "shut down"}
"""Ctrl-Alt-Del makes an image's init reboot: that is how a guest is shut down from outside."""

_KEY_SHOWN = 8
"""Characters of a key: one of a million keys begins as another does."""


@click.command(epilog=_EPILOG)
@click.option(
    "--all", "-a", "every", is_flag=True, help="Also guests that have ended and were kept."
)
@home_option
@json_option
def command(home: Home, *, every: bool, as_json: bool) -> None:
    """List the guests that run here, and what they wait for.

    FETCHED counts the bytes of its image that were not on this disk and came for a guest, readahead
    included. STATE is how long a guest is up, and what it waits for; of one that has ended, how:
    `suspended`, or `shut down`, `killed` (at once), `panic`, `crash`, `failed` (to boot) with its
    exit code. Of keys and paths the table shows the beginning, or the end; --json has all. Works
    without p2pcloopd.
    """
    guests = [guest for guest in list_guests(home) if every or guest.state == "running"]
    facts = [_facts(guest) for guest in guests]
    if as_json:
        click.echo(to_json({"guests": facts}))
    elif not facts:
        click.echo("no guest runs here" + ("" if every else "; --all lists those that have ended"))
    else:
        for line in _table([_HEAD, *map(_row, facts)]):
            click.echo(line)


def _facts(guest: GuestState) -> dict[str, Any]:
    record = guest.record
    facts = asdict(record)
    for key in ("process_start", "words", "directory", "state", "state_version"):
        del facts[key]
    suspended = {"name": record.state, "version": record.state_version}
    ended = record.ended
    up = (time.time() if ended is None else ended) - record.started
    return facts | {
        "suspended_as": None if record.state is None else suspended,
        "state": guest.state,
        "up": None if guest.state in ("lost", "damaged") else up,
        "fetched": guest.fetched,
        "waiting": None if guest.waiting is None else guest.waiting.what,
        "waiting_since": None if guest.waiting is None else guest.waiting.since,
    }


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    version = "" if facts["version"] is None else f" {facts['version']}"
    fetched = facts["fetched"]
    network = " ".join(filter(None, (facts["network"], facts["address"], *facts["ports"])))
    return (
        facts["name"],
        printable(_short(facts["image"])) + version,
        printable(_short(facts["overlay"] or "-")),
        format_size(facts["memory"]),
        network,
        "-" if fetched is None else format_size(fetched),
        _state(facts),
    )


def _short(place: str) -> str:
    """The name of a file; or the name of an image, which a command takes with so much of its key
    unless two keys begin with that."""
    if place.startswith("@"):
        key, _, label = place.partition("/")
        return f"{key[: _KEY_SHOWN + 1]}/{label}"
    return Path(place).name or place


def _state(facts: dict[str, Any]) -> str:
    match facts["state"]:
        case "lost":
            return "its process was killed"
        case "damaged":
            return printable(facts["error"])
        case "ended":
            why = f": {printable(facts['error'])}" if facts["error"] else ""
            ago = format_duration(time.time() - facts["ended"])
            if facts["reason"] == "suspended":
                return f"suspended {ago} ago"
            how = _ENDINGS.get(facts["reason"], facts["reason"])
            return f"{how} ({facts['exit_code']}) {ago} ago{why}"
    up = f"up {format_duration(facts['up'])}"
    if facts["display"] is not None:
        up += f", display {printable(str(facts['display'].get('address')))}"
    if facts["waiting"] is None:
        return up
    return (
        f"{up}, waits {format_duration(time.time() - facts['waiting_since'])}: {facts['waiting']}"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
