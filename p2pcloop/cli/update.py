"""`p2pcloop update`: find the newest version of an image."""

from __future__ import annotations

from typing import Any

import click

from p2pcloop.cli.options import IMAGE, home_option, json_option
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.refs import read_ref, report_waiting, words_of_the_user
from p2pcloop.client.terminal import say, warn
from p2pcloop.errors import UsageError
from p2pcloop.formats.manifest import open_manifest
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop update @key/debian
  p2pcloop update knoppix --json
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@home_option
@json_option
def command(ref: str, home: Home, *, as_json: bool) -> None:
    """Ask all sources for the newest version of REF; from then on its name stands for that.

    The sources are the mirrors in its link, and the local network and the DHT if these are turned
    on. The image itself is not fetched yet. A name never goes back to an older version.
    """
    with words_of_the_user():
        asked = read_ref(ref, home)
    if not isinstance(asked, str):
        inspect_file(asked, raw=True)  # is it there?
        raise UsageError(
            tr("{ref} is a file: it has no versions", ref=ref), hint="give a link or @key/label"
        )
    problems: list[str] = []
    found = False

    def on_event(event: str, fields: dict[str, Any]) -> None:
        nonlocal found
        if event == "asked":
            problems.extend(fields["problems"])
            found = fields.get("found", True)  # a p2pcloopd of an older version does not say
        report_waiting(event, fields)

    with ensure_daemon(home) as client:
        answer = client.call("resolve", on_event, ref=asked, at=0, look=True, withdrawn=True)
    manifest = open_manifest(answer["manifest"]).manifest
    facts = {
        "name": answer["name"],
        "version": manifest.version,
        "before": answer["before"],
        "created": manifest.created,
        "message": manifest.message,
        "withdrawn": manifest.withdrawn,
        "manifest": answer["id"],
        "link": answer["link"],
        "problems": problems,
    }
    for problem in problems:
        warn(problem)
    if as_json:
        click.echo(to_json(facts))
    else:
        say(_text(facts, found=found))


def _text(facts: dict[str, Any], *, found: bool) -> str:
    name, version, before = facts["name"], facts["version"], facts["before"]
    if before == version:
        why = tr("no newer one was found") if found else tr("no source could tell its newest one")
        return tr("{name} stays at version {version}: {why}", name=name, version=version, why=why)
    what = tr("{name} is at version {version}", name=name, version=version)
    if facts["withdrawn"]:
        what = tr(
            "{name} was withdrawn by its publisher, as version {version}",
            name=name,
            version=version,
        )
    what += tr(" (it was at {before})", before=before) if before else ""
    return what + (f": {facts['message']}" if facts["message"] else "")
