"""`p2pcloop status`: what the node has, fetches and serves."""

from __future__ import annotations

from typing import Any

import click

from p2pcloop.cli.control_client import ControlClient
from p2pcloop.cli.options import home_option, json_option, to_json
from p2pcloop.store.home import Home
from p2pcloop.units import format_size

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
    """Show what the node has, fetches and serves.

    With --watch and --json: one line of JSON a second. Exit code 9 where no p2pcloopd runs.
    """
    with ControlClient.connect(home) as client:
        if not watch:
            node = client.call("status")
            click.echo(to_json(node) if as_json else _text(node))
        elif as_json:
            client.call("watch", lambda _event, node: click.echo(to_json(node)))
        else:
            client.call("watch", lambda _event, node: _show(_text(node)))


def _show(text: str) -> None:
    click.clear()
    click.echo(text)


def describe_node(node: dict[str, Any]) -> str:
    """The node itself, in one line."""
    listen = ", ".join(node["listen"]) or "nowhere"
    return (
        f"p2pcloopd runs on {node['home']}, process {node['pid']},"
        f" for {_duration(node['uptime'])}; peers reach it at {listen}"
    )


def _text(node: dict[str, Any]) -> str:
    lines = [
        describe_node(node),
        f"received {format_size(node['received'])}, sent {format_size(node['sent'])}",
    ]
    lines += [_torrent(torrent) for torrent in node["torrents"]]
    return "\n".join(lines)


def _torrent(torrent: dict[str, Any]) -> str:
    traffic = torrent["traffic"]
    connected = sum(peer["connected"] for peer in traffic["peers"])
    name = torrent["name"] or "(metadata not here yet)"
    if torrent["size"]:
        share = f"{100 * torrent['have_bytes'] / torrent['size']:.0f} % of "
        share += format_size(torrent["size"])
    else:
        share = "0 %"
    return (
        f"{torrent['info_hash'].hex()}  {name}  {share}  peers {connected}"
        f"  down {format_size(traffic['down_rate'])}/s  up {format_size(traffic['up_rate'])}/s"
        f"  ({format_size(traffic['payload_received'])} in,"
        f" {format_size(traffic['payload_sent'])} out)"
    )


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
