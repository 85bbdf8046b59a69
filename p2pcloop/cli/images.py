"""`p2pcloop images`: the images that are known here, and how much of each is here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.terminal import say
from p2pcloop.store.home import Home
from p2pcloop.store.inventory import StoredVersion, list_versions
from p2pcloop.store.names import ShortNames
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop images
  p2pcloop images --all      # older versions, too
  p2pcloop images --json | jq '.images[] | select(.here_share < 1).name'
"""


@click.command(epilog=_EPILOG)
@click.option("--all", "every", is_flag=True, help="Older versions of each name, too.")
@home_option
@json_option
def command(home: Home, *, every: bool, as_json: bool) -> None:
    """List the images that are known here: version, size, how much of it is here, whose it is.

    Works without p2pcloopd, which seeds all of these whenever it runs.
    """
    shorts = {name: short for short, name in ShortNames(home).all().items()}
    serves = home.holder() is not None
    images = [
        _facts(version, shorts.get(version.signed.manifest.name), serves=serves)
        for version in list_versions(home)
        if every or version.newest
    ]
    if as_json:
        click.echo(to_json({"images": images}))
        return
    if not images:
        say(tr("no image is known in {root}: `p2pcloop seed` or `boot` one", root=home.root))
    for facts in images:
        for line in _text(facts):
            say(line)


def _facts(version: StoredVersion, short: str | None, *, serves: bool) -> dict[str, Any]:
    manifest = version.signed.manifest
    return {
        "name": str(manifest.name),
        "short": short,
        "version": manifest.version,
        "newest": version.newest,
        "created": manifest.created,
        "message": manifest.message,
        "manifest": version.signed.id,
        "size": manifest.disk_length,
        "memory": None if manifest.machine is None else manifest.machine.memory_length,
        "stored": version.stored,
        "here": version.here,
        "here_share": version.here / version.stored if version.stored else 0.0,
        "from": "published here" if version.ours else "others",
        "in_place": [str(path) for path in version.in_place],
        "unserved": list(version.unserved),
        "seeded": serves and version.verified > 0,
        "private": manifest.private,
        "withdrawn": manifest.withdrawn,
        "pinned": version.pinned,
        "overlays": [str(path) for path in version.overlays],
    }


def _text(facts: dict[str, Any]) -> Iterator[str]:
    day = datetime.fromtimestamp(facts["created"], UTC).date()
    short = f" ({facts['short']})" if facts["short"] else ""
    yield f"{facts['name']}{short}"
    if facts["withdrawn"]:
        why = f": {printable(facts['message'])}" if facts["message"] else ""
        yield tr(
            "  version {version} of {day}: withdrawn by its publisher{why}",
            version=facts["version"],
            day=day,
            why=why,
        )
        return
    # Rounded down: "100 %" means all of it.
    share = 100 * facts["here"] // facts["stored"]
    notes = [facts["from"] if facts["from"] == "published here" else "from others"]
    notes += [each for each in ("private", "pinned", "seeded") if facts[each]]
    memory = facts["memory"]
    state = (
        ""
        if memory is None
        else tr(", a state with {memory} of memory", memory=format_size(memory))
    )
    yield tr(
        "  version {version} of {day}: {share} % of {stored} here, for a device of"
        " {size}{state}; {notes}",
        version=facts["version"],
        day=day,
        share=share,
        stored=format_size(facts["stored"]),
        size=format_size(facts["size"]),
        state=state,
        notes=", ".join(notes),
    )
    for path in facts["in_place"]:
        yield tr("  read from {path}", path=printable(path))
    for why in facts["unserved"]:
        yield f"  {printable(why)}"
    for path in facts["overlays"]:
        yield tr("  below the overlay {path}", path=printable(path))
