"""`p2pcloop log`: the versions of an image, the newest first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from p2pcloop.cells import cells
from p2pcloop.cli.options import IMAGE, at_option, home_option, json_option
from p2pcloop.client.refs import report_waiting, resolve_stored
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import say
from p2pcloop.errors import MismatchError, P2pcloopError
from p2pcloop.formats.lineage import check_previous
from p2pcloop.formats.manifest import ManifestRef, SignedManifest, open_manifest
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import joined, tr, translated

_ADDED_WIDTH = 9
"""Cells."""

_EPILOG = """
\b
Examples:
  p2pcloop log @key/debian
  p2pcloop log knoppix --number 3 --json
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@click.option(
    "--number",
    "-n",
    type=click.IntRange(1, 4096),
    default=100,
    show_default=True,
    help="At most so many versions.",
)
@at_option
@home_option
@json_option
def command(ref: str, number: int, at: int, home: Home, *, as_json: bool) -> None:
    """List the versions of REF, the newest first: version, date, bytes added, message.

    Also the image that a version was made from, if that is neither the version before nor the one
    which that was made from. The output says which versions cannot be fetched.
    """
    why, hint = tr("it has no versions"), tr("give a link or @key/label")
    target = resolve_stored(ref, home, at=at, withdrawn=True, why_no_file=why, hint=hint)
    with target.client:
        history = _History(target)
        versions = [_facts(history, *row) for row in _walk(history, number)]
    if as_json:
        click.echo(to_json({"name": target.name, "versions": versions}))
        return
    click.echo(target.name)
    for version, before in zip(versions, [*versions[1:], None], strict=True):
        say(_text(version, before))


class _History:
    """The manifests that others name; each is asked for only once."""

    def __init__(self, ref: StoredRef) -> None:
        self.newest = ref.signed
        self._ref = ref
        self._known: dict[bytes, SignedManifest | P2pcloopError] = {ref.signed.id: ref.signed}

    def get(self, wanted: ManifestRef) -> SignedManifest:
        """Get a manifest.

        Raises:
            P2pcloopError: it cannot be fetched.
        """
        if wanted.id not in self._known:
            try:
                self._known[wanted.id] = self._ask(wanted)
            except P2pcloopError as err:
                self._known[wanted.id] = err
        known = self._known[wanted.id]
        if isinstance(known, P2pcloopError):
            raise known
        return known

    def _ask(self, wanted: ManifestRef) -> SignedManifest:
        answer = self._ref.client.call(
            "manifest",
            report_waiting,
            id=wanted.id,
            torrent=wanted.torrent or b"",
            near=self._ref.name,
        )
        return open_manifest(answer["manifest"])


def _walk(
    history: _History, number: int
) -> Iterator[tuple[SignedManifest, SignedManifest | None, str]]:
    """Versions, each with the one before it; the last one with the error that ended the walk."""
    current = history.newest
    for _ in range(number):
        before, problem = None, ""
        if current.manifest.previous is not None:
            try:
                before = history.get(current.manifest.previous)
                check_previous(current.manifest, before.manifest)
            except P2pcloopError as err:
                before, problem = None, err.message
        yield current, before, problem
        if before is None:
            return
        current = before


def _facts(
    history: _History, signed: SignedManifest, before: SignedManifest | None, problem: str
) -> dict[str, Any]:
    manifest = signed.manifest
    facts: dict[str, Any] = {
        "version": manifest.version,
        "created": manifest.created,
        "message": manifest.message,
        "manifest": signed.id,
        "layers": len(manifest.layers),
        "private": manifest.private,
        "withdrawn": manifest.withdrawn,
        "memory": None if manifest.machine is None else manifest.machine.memory_length,
        "parent": None,
        "missing": problem or None,
    }
    bases = [] if before is None else [before]
    if manifest.parent is not None:
        facts["parent"] = {"manifest": manifest.parent.id, "name": None, "version": None}
        try:
            parent = history.get(manifest.parent)
            if parent.id == signed.id:
                raise MismatchError("it says that it was made from itself")
            bases.append(parent)
            facts["parent"] |= {
                "name": str(parent.manifest.name),
                "version": parent.manifest.version,
            }
        except P2pcloopError as err:
            facts["parent"]["missing"] = err.message
    known = {layer.layer_id for base in bases for layer in base.manifest.layers}
    added = [layer for layer in manifest.layers if layer.layer_id not in known]
    return facts | {"added": sum(layer.pack_length for layer in added)}


def _text(facts: dict[str, Any], before: dict[str, Any] | None) -> str:
    date = datetime.fromtimestamp(facts["created"], UTC).isoformat(" ", "minutes")
    added = translated(tr("withdrawn")) if facts["withdrawn"] else format_size(facts["added"])
    added = " " * (_ADDED_WIDTH - cells(added)) + added
    line = f"  {facts['version']:>4}  {date}  {added}  {facts['message']}"
    lines = [line.rstrip()]
    if facts["memory"] is not None:
        lines.append(
            tr("        a state, with {memory} of memory", memory=format_size(facts["memory"]))
        )
    parent = facts["parent"]
    if parent is not None and (before is None or not _is_told(parent, before)):
        what = tr("{name}, version {version}", name=parent["name"], version=parent["version"])
        if parent["name"] is None:
            what = f"{parent['manifest'].hex()}: {parent['missing']}"
        lines.append(tr("        made from {what}", what=what))
    if facts["missing"]:
        lines.append(
            tr("        what came before it cannot be told: {missing}", missing=facts["missing"])
        )
    return joined("\n", lines)


def _is_told(parent: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a version was made from the one before it, or both from the same."""
    return parent["manifest"] == before["manifest"] or bool(parent == before["parent"])
