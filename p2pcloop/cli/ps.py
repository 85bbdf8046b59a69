"""`p2pcloop ps`: the guests of this home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from p2pcloop.cells import cells, padded
from p2pcloop.cli.guest_facts import describe_state, guest_facts, short_name
from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.terminal import say
from p2pcloop.store.guests import list_guests
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr, translated_if_marked

_EPILOG = """
\b
Examples:
  p2pcloop ps
  p2pcloop ps -a                    # also those that have ended and were kept
  p2pcloop ps --json | jq -r '.guests[] | select(.waiting).name'
"""

_HEAD = (
    *(tr("NAME"), tr("IMAGE"), tr("OVERLAY"), tr("MEMORY"), tr("NETWORK"), tr("FETCHED")),
    tr("STATE"),
)


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
    `suspended`, `moved` to another machine, or `shut down`, `killed` (at once), `panic`, `crash`,
    `failed` (to boot) with its exit code. Of keys and paths the table shows the beginning, or the
    end; --json has all. Works without p2pcloopd.
    """
    guests = [guest for guest in list_guests(home) if every or guest.state == "running"]
    facts = [guest_facts(guest) for guest in guests]
    if as_json:
        click.echo(to_json({"guests": facts}))
    elif not facts:
        say(
            tr("no guest runs here")
            if every
            else tr("no guest runs here; --all lists those that have ended")
        )
    else:
        for line in _table([_HEAD, *map(_row, facts)]):
            click.echo(line)


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    version = "" if facts["version"] is None else f" {facts['version']}"
    fetched = facts["fetched"]
    network = " ".join(filter(None, (facts["network"], facts["address"], *facts["ports"])))
    return (
        facts["name"],
        printable(short_name(facts["image"])) + version,
        printable(short_name(facts["overlay"] or "-")),
        format_size(facts["memory"]),
        network,
        "-" if fetched is None else format_size(fetched),
        describe_state(facts),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    told = [tuple(map(translated_if_marked, row)) for row in rows]
    widths = [max(map(cells, column)) for column in zip(*told, strict=True)]
    return [
        "  ".join(padded(text, width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in told
    ]
