"""`p2pcloop status`: the data that the node has, fetches and serves."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.cli.reach import describe_only_here, is_only_here
from p2pcloop.client.control_client import ControlClient
from p2pcloop.errors import FormatError, MismatchError, NotHereError
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.text import to_json
from p2pcloop.units import format_duration, format_size

_EPILOG = """
\b
Examples:
  p2pcloop status
  p2pcloop status --watch
  p2pcloop status --json | jq '.torrents[].have_bytes'
"""


@click.command(epilog=_EPILOG)
@home_option
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
@json_option
def command(home: Home, *, watch: bool, as_json: bool) -> None:
    """Show the images that the node has, fetches and serves.

    With --watch and --json: one line of JSON a second. Exit code 9 if no p2pcloopd runs.
    """
    with ControlClient.connect(home) as client:
        if not watch:
            node = client.call("status")
            click.echo(to_json(_facts(node)) if as_json else _text(node))
        elif as_json:
            client.call("watch", lambda _event, node: click.echo(to_json(_facts(node))))
        else:
            client.call("watch", lambda _event, node: _show(_text(node)))


def _show(text: str) -> None:
    click.clear()
    click.echo(text)


def _facts(node: dict[str, Any]) -> dict[str, Any]:
    """The node's status, with the names of the images that its torrents belong to."""
    torrents = {torrent["info_hash"]: torrent for torrent in node["torrents"]}
    images = []
    for name, layers, manifest in _images(Home.at(node["home"])):
        found = [torrents[layer] for layer in layers if layer in torrents]
        images.append(
            {
                "name": name,
                "torrents": layers,
                "manifest_torrent": manifest,
                "size": sum(torrent["size"] or 0 for torrent in found),
                "have_bytes": sum(torrent["have_bytes"] for torrent in found),
                "provisional_bytes": sum(torrent["provisional_bytes"] for torrent in found),
            }
        )
    return node | {"images": images}


def describe_node(node: dict[str, Any]) -> str:
    """The node itself, in one line."""
    listen = ", ".join(node["listen"]) or "nowhere"
    http = ", ".join(f"http://{address}/" for address in node["http"]["listen"]) or "not over HTTP"
    return (
        f"p2pcloopd runs on {node['home']}, process {node['pid']},"
        f" for {format_duration(node['uptime'])}; peers reach it at {listen}, {http}"
    )


def _text(node: dict[str, Any]) -> str:
    lines = [
        describe_node(node),
        f"received {format_size(node['received'])}, sent {format_size(node['sent'])}",
        *node["warnings"],
    ]
    if is_only_here([address.rpartition(":")[0] for address in node["listen"]]):
        lines.append(describe_only_here(Home.at(node["home"])))
    for mirror in node["mirrors"]:
        came = f"{format_size(mirror['received'])} came from it"
        lines.append(f"mirror {mirror['base']}: {mirror['error'] or came}")
    torrents = {torrent["info_hash"]: torrent for torrent in node["torrents"]}
    told = set()
    for name, layers, manifest in _images(Home.at(node["home"])):
        found = [torrents[layer] for layer in layers if layer in torrents]
        # Only a withdrawal has no layers.
        lines += ["", name, f"  {_traffic(found) if layers else 'withdrawn by its publisher'}"]
        told |= {*layers, manifest}
    others = [torrent for info_hash, torrent in torrents.items() if info_hash not in told]
    if others:
        lines += ["", "torrents that are not of the newest version of a name:"]
        versions = _versions(Home.at(node["home"]))
    for torrent in others:
        unnamed = torrent["name"] or "metadata not here yet"
        what = versions.get(torrent["info_hash"], unnamed)
        lines += [f"  {torrent['info_hash'].hex()} ({what})", f"    {_traffic([torrent])}"]
    return "\n".join(lines)


def _versions(home: Home) -> dict[bytes, str]:
    """What the torrents of all known versions belong to, by their info hashes; for people."""
    found: dict[bytes, str] = {}
    records = Records(home)
    for record in records.names():
        for number, ref in record.versions.items():
            version = f"{record.name}, version {number}"
            if ref.torrent:
                found[ref.torrent] = f"manifest of {version}"
            with suppress(NotHereError, FormatError, MismatchError):
                for layer in records.manifest(ref.id).manifest.all_layers:
                    found.setdefault(layer.torrent, version)
    return found


def _images(home: Home) -> Iterable[tuple[str, list[bytes], bytes]]:
    """Each known name, with the torrents of its layers and of its manifest."""
    records = Records(home)
    for record in records.names():
        try:
            manifest = records.manifest(record.manifest_id).manifest
        except NotHereError:
            continue
        layers = [layer.torrent for layer in manifest.layers]
        yield str(record.name), layers, record.link.manifest_torrent


def _traffic(torrents: list[dict[str, Any]]) -> str:
    """How much of some torrents is here, and how fast they move."""
    known = [torrent for torrent in torrents if torrent["size"]]
    size = sum(torrent["size"] for torrent in known)
    here = sum(each["have_bytes"] + each["provisional_bytes"] for each in known or torrents)
    traffic = [torrent["traffic"] for torrent in torrents]
    peers = {p["address"] for one in traffic for p in one["peers"] if p["connected"]}

    def total(field: str) -> str:
        return format_size(sum(one[field] for one in traffic))

    # Rounded down: "100 %" means all of it.
    reasons = [one["reason"] for one in torrents if one.get("reason")]
    if size:
        share = f"{100 * here // size} % of {format_size(size)} here"
    else:  # bytes by their exact ranges come before the metadata
        share = f"{format_size(here)} here" if here else "nothing here yet"
    told = "".join(f"\n  {reason}" for reason in reasons)
    return (
        f"{share}, {len(peers)} peer{'' if len(peers) == 1 else 's'};"
        f" received {total('payload_received')} ({total('down_rate')}/s),"
        f" sent {total('payload_sent')} ({total('up_rate')}/s){told}"
    )
