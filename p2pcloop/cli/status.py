"""`p2pcloop status`: the data that the node has, fetches and serves, and the guests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from p2pcloop.cli.guest_facts import describe_state, short_name
from p2pcloop.cli.node_facts import (
    describe_torrent,
    look,
    other_torrents,
    peers_of,
    share_here,
    torrents_of,
    waiting_of,
)
from p2pcloop.cli.options import home_option, json_option
from p2pcloop.cli.reach import describe_only_here, is_only_here
from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.progress import without_waits
from p2pcloop.client.terminal import say
from p2pcloop.errors import NeedsPackageError
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_duration, format_size
from p2pcloop.words import joined, tr, tr_n

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
            if as_json:
                click.echo(to_json(node))
            else:
                say(_text(node))
        else:
            with without_waits():  # one waits for each status as long as for a slow answer
                _watch(home, client, as_json=as_json)


def _watch(home: Home, client: ControlClient, *, as_json: bool) -> None:
    if as_json:
        client.call("watch", lambda _event, node: click.echo(to_json(look(home, node))))
    elif sys.stdout.isatty():
        _watch_on_terminal(home, client)
    else:
        client.call("watch", lambda _event, node: say(_text(look(home, node)) + "\n"))


def _watch_on_terminal(home: Home, client: ControlClient) -> None:
    try:
        from p2pcloop.cli.status_screen import watch_status  # noqa: PLC0415  rich takes long
    except ModuleNotFoundError as err:  # a distribution's package only recommends it
        raise NeedsPackageError(
            tr("--watch on a terminal needs {name}", name=err.name),
            hint="install python3-rich; `p2pcloop status --watch | cat` does without",
        ) from err
    watch_status(home, client)


def describe_node(node: dict[str, Any]) -> str:
    """The node itself, in one line."""
    listen = ", ".join(node["listen"]) or tr("nowhere")
    http = ", ".join(f"http://{address}/" for address in node["http"]["listen"]) or tr(
        "not over HTTP"
    )
    return tr(
        "p2pcloopd runs on {home}, process {pid}, for {uptime}; peers reach it at {listen}, {http}",
        home=node["home"],
        pid=node["pid"],
        uptime=format_duration(node["uptime"]),
        listen=listen,
        http=http,
    )


def _text(node: dict[str, Any]) -> str:
    return joined("\n", _lines(node))


def _lines(node: dict[str, Any]) -> Iterator[str]:
    yield describe_node(node)
    yield tr(
        "received {received}, sent {sent}",
        received=format_size(node["received"]),
        sent=format_size(node["sent"]),
    )
    yield from node["warnings"]
    if is_only_here([address.rpartition(":")[0] for address in node["listen"]]):
        yield describe_only_here(Home.at(node["home"]))
    for mirror in node["mirrors"]:
        came = tr("{received} came from it", received=format_size(mirror["received"]))
        yield tr("mirror {base}: {error}", base=mirror["base"], error=mirror["error"] or came)
    if node["guests"]:
        yield from ("", tr("guests:"))
    for guest in node["guests"]:
        image = printable(short_name(guest["image"]))
        yield f"  {guest['name']} ({image}): " + describe_state(guest | {"display": None})
    torrents = {torrent["info_hash"]: torrent for torrent in node["torrents"]}
    for image in node["images"]:
        layers = torrents_of(image, torrents)
        # Only a withdrawal has no layers.
        told = _traffic(image, layers) if image["torrents"] else tr("withdrawn by its publisher")
        yield from ("", image["name"], "  " + told)
    yield from _others(node)


def _others(node: dict[str, Any]) -> Iterator[str]:
    others = other_torrents(node)
    if others:
        yield from ("", tr("torrents that are not of the newest version of a name:"))
    for torrent in others:
        yield f"  {torrent['info_hash'].hex()} (" + describe_torrent(torrent) + ")"
        yield "    " + _traffic(torrent, [torrent])


def _traffic(facts: dict[str, Any], torrents: list[dict[str, Any]]) -> str:
    """How much of an image or a torrent is here, and how fast its torrents move."""
    here, size = share_here(facts)
    traffic = [torrent["traffic"] for torrent in torrents]
    peers = peers_of(torrents)

    def total(field: str) -> str:
        return format_size(sum(one[field] for one in traffic))

    if size:  # rounded down: "100 %" means all of it
        share = tr("{here} % of {size} here", here=100 * here // size, size=format_size(size))
    else:  # bytes by their exact ranges come before the metadata
        share = tr("{here} here", here=format_size(here)) if here else tr("nothing here yet")
    told = [one["reason"] for one in torrents if one.get("reason")]
    if waiting := waiting_of(torrents):
        told.append(
            tr(
                "waits {duration} for {what}",
                duration=format_duration(waiting[0]),
                what=waiting[1],
            )
        )
    moved = tr(
        "{share}, {peers}; received {received} ({down}/s), sent {sent} ({up}/s)",
        share=share,
        peers=tr_n("{count} peer", "{count} peers", peers),
        received=total("payload_received"),
        down=total("down_rate"),
        sent=total("payload_sent"),
        up=total("up_rate"),
    )
    return joined("\n  ", (moved, *told))
