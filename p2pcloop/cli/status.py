"""`p2pcloop status`: the data that the node has, fetches and serves, and the guests."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from p2pcloop.cli.guest_facts import describe_state, guest_facts, short_name
from p2pcloop.cli.options import home_option, json_option
from p2pcloop.cli.reach import describe_only_here, is_only_here
from p2pcloop.client.control_client import ControlClient
from p2pcloop.errors import NeedsPackageError
from p2pcloop.store.guests import list_guests
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_duration, format_size

STALLED_SECONDS = 1
"""Without data for so long a torrent that is wanted is said to wait."""

_OF_TORRENTS: dict[str, Any] = {
    "image": None,
    "version": None,
    "kind": None,
    "wanted": False,
    "stalled": 0.0,
    "tried": [],
}
"""What a p2pcloopd that was started before an upgrade does not tell."""

_EPILOG = """
\b
Examples:
  p2pcloop status
  p2pcloop status --watch
  p2pcloop status --json | jq '.images[] | {name, have_bytes}'
"""


@click.command(epilog=_EPILOG)
@home_option
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
@json_option
def command(home: Home, *, watch: bool, as_json: bool) -> None:
    """Show the images that the node has, fetches and serves, its guests, and what each waits for.

    With --watch it fills the terminal, what moves or waits first. Where the output is no terminal,
    it is written again and again; with --json: one line of JSON a second. Exit code 9 if no
    p2pcloopd runs.
    """
    with ControlClient.connect(home) as client:
        if not watch:
            node = look(home, client.call("status"))
            click.echo(to_json(node) if as_json else _text(node))
        elif as_json:
            client.call("watch", lambda _event, node: click.echo(to_json(look(home, node))))
        elif sys.stdout.isatty():
            _watch_on_terminal(home, client)
        else:
            client.call("watch", lambda _event, node: click.echo(_text(look(home, node)) + "\n"))


def _watch_on_terminal(home: Home, client: ControlClient) -> None:
    try:
        from p2pcloop.cli.status_screen import watch_status  # noqa: PLC0415  rich takes long
    except ModuleNotFoundError as err:  # a distribution's package only recommends it
        raise NeedsPackageError(
            f"--watch on a terminal needs {err.name}",
            hint="install python3-rich; `p2pcloop status --watch | cat` does without",
        ) from err
    watch_status(home, client)


def look(home: Home, node: dict[str, Any]) -> dict[str, Any]:
    """The node's status and the guests that run, as `status --json` tells them."""
    guests = [guest_facts(guest) for guest in list_guests(home) if guest.state == "running"]
    for guest in guests:
        del guest["display"]  # its password: what is told here is sent to others who help
    torrents = [_OF_TORRENTS | torrent for torrent in node["torrents"]]
    return {"images": []} | node | {"torrents": torrents, "guests": guests}


def describe_node(node: dict[str, Any]) -> str:
    """The node itself, in one line."""
    listen = ", ".join(node["listen"]) or "nowhere"
    http = ", ".join(f"http://{address}/" for address in node["http"]["listen"]) or "not over HTTP"
    return (
        f"p2pcloopd runs on {node['home']}, process {node['pid']},"
        f" for {format_duration(node['uptime'])}; peers reach it at {listen}, {http}"
    )


def _text(node: dict[str, Any]) -> str:
    return "\n".join(_lines(node))


def _lines(node: dict[str, Any]) -> Iterator[str]:
    yield describe_node(node)
    yield f"received {format_size(node['received'])}, sent {format_size(node['sent'])}"
    yield from node["warnings"]
    if is_only_here([address.rpartition(":")[0] for address in node["listen"]]):
        yield describe_only_here(Home.at(node["home"]))
    for mirror in node["mirrors"]:
        came = f"{format_size(mirror['received'])} came from it"
        yield f"mirror {mirror['base']}: {mirror['error'] or came}"
    if node["guests"]:
        yield from ("", "guests:")
    for guest in node["guests"]:
        image = printable(short_name(guest["image"]))
        yield f"  {guest['name']} ({image}): {describe_state(guest | {'display': None})}"
    torrents = {torrent["info_hash"]: torrent for torrent in node["torrents"]}
    for image in node["images"]:
        layers = torrents_of(image, torrents)
        # Only a withdrawal has no layers.
        told = _traffic(layers) if image["torrents"] else "withdrawn by its publisher"
        yield from ("", image["name"], f"  {told}")
    yield from _others(node)


def torrents_of(
    image: dict[str, Any], torrents: dict[bytes, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The torrents of an image's layers, as far as the node has them."""
    return [torrents[layer] for layer in image["torrents"] if layer in torrents]


def other_torrents(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The torrents that are neither layers nor manifests of the newest version of a name."""
    told = {
        torrent
        for image in node["images"]
        for torrent in (*image["torrents"], image["manifest_torrent"])
    }
    return [torrent for torrent in node["torrents"] if torrent["info_hash"] not in told]


def _others(node: dict[str, Any]) -> Iterator[str]:
    others = other_torrents(node)
    if others:
        yield from ("", "torrents that are not of the newest version of a name:")
    for torrent in others:
        yield f"  {torrent['info_hash'].hex()} ({describe_torrent(torrent)})"
        yield f"    {_traffic([torrent])}"


def describe_torrent(torrent: dict[str, Any]) -> str:
    """What a torrent is, for people: of which image it is a part."""
    if torrent["image"] is None:
        return printable(torrent["name"] or "metadata not here yet")
    version = f"{torrent['image']}, version {torrent['version']}"
    return f"manifest of {version}" if torrent["kind"] == "manifest" else version


def share_here(torrents: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Bytes that are here, and bytes in all of the torrents of which that is known (else 0)."""
    torrents = list(torrents)
    known = [torrent for torrent in torrents if torrent["size"]]
    here = sum(each["have_bytes"] + each["provisional_bytes"] for each in known or torrents)
    return here, sum(torrent["size"] for torrent in known)


def peers_of(torrents: Iterable[dict[str, Any]]) -> int:
    """How many peers are connected for torrents."""
    return len(
        {
            peer["address"]
            for torrent in torrents
            for peer in torrent["traffic"]["peers"]
            if peer["connected"]
        }
    )


def waiting_of(torrents: Iterable[dict[str, Any]]) -> tuple[float, str] | None:
    """For how many seconds torrents wait for data, and for what; None where none does."""
    waiting = [each for each in torrents if each["stalled"] >= STALLED_SECONDS]
    if not waiting:
        return None
    most = max(waiting, key=lambda each: float(each["stalled"]))
    what = "data" if most["size"] else "its metadata"
    tried = ", ".join(most["tried"])
    return most["stalled"], f"{what}; tried: {printable(tried)}" if tried else f"{what}; no peer"


def _traffic(torrents: list[dict[str, Any]]) -> str:
    """How much of some torrents is here, and how fast they move."""
    here, size = share_here(torrents)
    traffic = [torrent["traffic"] for torrent in torrents]
    peers = peers_of(torrents)

    def total(field: str) -> str:
        return format_size(sum(one[field] for one in traffic))

    if size:  # rounded down: "100 %" means all of it
        share = f"{100 * here // size} % of {format_size(size)} here"
    else:  # bytes by their exact ranges come before the metadata
        share = f"{format_size(here)} here" if here else "nothing here yet"
    told = [one["reason"] for one in torrents if one.get("reason")]
    if waiting := waiting_of(torrents):
        told.append(f"waits {format_duration(waiting[0])} for {waiting[1]}")
    moved = (
        f"{share}, {peers} peer{'' if peers == 1 else 's'};"
        f" received {total('payload_received')} ({total('down_rate')}/s),"
        f" sent {total('payload_sent')} ({total('up_rate')}/s)"
    )
    return "\n  ".join((moved, *told))
