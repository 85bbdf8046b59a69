"""`p2pcloop status --watch` on a terminal: one screen, drawn anew with each status of the node."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from p2pcloop.cli.guest_facts import short_name
from p2pcloop.cli.node_facts import (
    describe_torrent,
    look,
    other_torrents,
    peers_of,
    share_here,
    torrents_of,
    waiting_of,
)
from p2pcloop.client.control_client import ControlClient
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloop.store.names import ShortNames
from p2pcloop.text import printable
from p2pcloop.units import format_duration, format_size
from p2pcloop.words import tr, translated, translated_if_marked

Handler = Callable[[int, FrameType | None], object]

_HEAD_LINES = 3
_TABLE_LINES = 2
"""Of each table: its head, and a line for what did not fit."""


def watch_status(home: Home, client: ControlClient) -> None:
    """Show the node until Ctrl-C; the terminal is then as it was before.

    Raises:
        DaemonError: p2pcloopd went away.
    """
    shorts = {str(name): short for short, name in ShortNames(home).all().items()}
    console = Console(file=sys.stdout, highlight=False)
    screen = _Screen(console, shorts)
    live = Live(console=console, screen=True, auto_refresh=False, get_renderable=screen.draw)
    drawing = False

    def draw() -> None:
        nonlocal drawing
        if not drawing:  # else a signal came half-way: the next status is drawn in the new size
            drawing = True
            # Not as rich finds it: $COLUMNS and $LINES, where a shell exports them, never change.
            console.size = ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))
            live.refresh()
            drawing = False

    def show(_event: str, node: dict[str, Any]) -> None:
        screen.node = look(home, node)
        draw()

    resized = {signal.SIGWINCH: lambda _number, _frame: draw()}
    with live, _handled(resized | dict.fromkeys((signal.SIGTERM, signal.SIGHUP), _end)):
        client.call("watch", show)


def _end(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that the terminal is put in order."""
    raise SystemExit(128 + number)


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class _Row:
    """A line about an image or a torrent.

    Attributes:
        order: the first in order are shown where there is no room for all.
    """

    order: tuple[int, float, str]
    cells: tuple[Text, ...]


class _Screen:
    """What is drawn.

    Attributes:
        node: as `look` returns it; None before the first status came.
    """

    def __init__(self, console: Console, shorts: dict[str, str]) -> None:
        self.node: dict[str, Any] | None = None
        self._console = console
        self._shorts = shorts

    def draw(self) -> Group:
        """The screen for the terminal's present size."""
        node = self.node
        if node is None:
            return Group(Text(translated(tr("asks p2pcloopd …"))))
        room = self._console.height - _HEAD_LINES
        guests = _guest_rows(node["guests"])
        images = self._image_rows(node)
        for_guests = min(len(guests), max(3, room // 2)) if guests else 0
        parts: list[Text | Table] = [*_head(node)]
        if guests:
            parts += _table(
                (tr("GUEST"), tr("IMAGE"), tr("UP"), tr("FETCHED"), tr("WAITS FOR")),
                guests,
                for_guests,
            )
            room -= for_guests + _TABLE_LINES
        head = (
            *(tr("IMAGE"), tr("HERE"), tr("OF"), tr("DOWN"), tr("UP"), tr("PEERS")),
            tr("WAITS FOR"),
        )
        parts += _table(head, images, max(1, room - _TABLE_LINES))
        return Group(*parts)

    def _image_rows(self, node: dict[str, Any]) -> list[tuple[Text, ...]]:
        torrents = {torrent["info_hash"]: torrent for torrent in node["torrents"]}
        rows = [
            _row(
                *(self._name(image), image, torrents_of(image, torrents)),
                withdrawn=not image["torrents"],
            )
            for image in node["images"]
        ]
        rows += [_row(_what(torrent), torrent, [torrent]) for torrent in other_torrents(node)]
        return [row.cells for row in sorted(rows, key=lambda row: row.order)]

    def _name(self, image: dict[str, Any]) -> str:
        return self._shorts.get(image["name"]) or short_name(image["name"])


def _what(torrent: dict[str, Any]) -> str:
    """Of which image a torrent is, in few characters."""
    if torrent["image"] is None:
        return describe_torrent(torrent) + f" {torrent['info_hash'].hex()[:8]}"
    what = f"{short_name(torrent['image'])} {torrent['version']}"
    return tr("manifest of {what}", what=what) if torrent["kind"] == "manifest" else what


def _head(node: dict[str, Any]) -> list[Text]:
    down = sum(torrent["traffic"]["down_rate"] for torrent in node["torrents"])
    up = sum(torrent["traffic"]["up_rate"] for torrent in node["torrents"])
    peers = peers_of(node["torrents"])
    listen = ", ".join(node["listen"]) or tr("nowhere")
    return [
        _line(
            tr(
                "p2pcloopd on {home}, up {uptime}; peers reach it at {listen}",
                home=printable(node["home"]),
                uptime=format_duration(node["uptime"]),
                listen=listen,
            ),
            "bold",
        ),
        _line(
            tr(
                "down {down}/s, up {up}/s; {peers} peers; received {received}, sent {sent}",
                down=format_size(down),
                up=format_size(up),
                peers=peers,
                received=format_size(node["received"]),
                sent=format_size(node["sent"]),
            )
        ),
        _line("; ".join(map(printable, node["warnings"])), "yellow"),
    ]


def _line(text: str, style: str = "") -> Text:
    return Text(translated_if_marked(text), style, no_wrap=True, overflow="ellipsis")


def _table(head: Sequence[str], rows: Sequence[tuple[Text, ...]], room: int) -> list[Text | Table]:
    """At most `room` rows under a head, and a line that tells how many more there are."""
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    for number, title in enumerate(head):
        last = number == len(head) - 1
        right = title in ("HERE", "OF", "DOWN", "UP", "PEERS", "FETCHED")
        table.add_column(
            translated(title),
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if last else None,
            min_width=12 if last or not number else None,
        )
    for row in rows[:room]:
        table.add_row(*row)
    more = len(rows) - room
    return [table, _line(tr("… and {more} more", more=more) if more > 0 else "", "dim")]


def _guest_rows(guests: list[dict[str, Any]]) -> list[tuple[Text, ...]]:
    """Those that wait first, those that wait longest at the top."""

    def order(guest: dict[str, Any]) -> tuple[float, float]:
        since = guest["waiting_since"]
        return (time.time() if since is None else since), guest["started"]

    return [_guest_row(guest) for guest in sorted(guests, key=order)]


def _guest_row(guest: dict[str, Any]) -> tuple[Text, ...]:
    waits = ""
    if guest["waiting"] is not None:
        seconds = time.time() - guest["waiting_since"]
        waits = f"{format_duration(seconds)} {printable(guest['waiting'])}"
    fetched = "" if guest["fetched"] is None else format_size(guest["fetched"])
    image = printable(short_name(guest["image"]))
    if guest["version"] is not None:
        image += f" {guest['version']}"
    return (
        _line(guest["name"]),
        _line(image),
        _line(format_duration(guest["up"])),
        _line(fetched),
        _line(waits, "yellow"),
    )


def _row(
    name: str, facts: dict[str, Any], torrents: list[dict[str, Any]], *, withdrawn: bool = False
) -> _Row:
    """The row of an image or a torrent."""
    here, size = share_here(facts)
    down, up = (
        sum(each["traffic"][field] for each in torrents) for field in ("down_rate", "up_rate")
    )
    peers, waiting = peers_of(torrents), waiting_of(torrents)
    reasons = [each["reason"] for each in torrents if each.get("reason")]
    told, style = "", ""
    if waiting is not None:
        told, style = f"{format_duration(waiting[0])} " + waiting[1], "yellow"
    elif reasons:
        told, style = printable(reasons[0]), "red"
    elif withdrawn:
        told = tr("withdrawn by its publisher")
    moves = bool(down or up)
    complete = bool(size) and here >= size
    rank = next(
        number
        for number, holds in enumerate((waiting, moves, reasons, peers, not complete, True))
        if holds
    )
    quiet = "" if rank < 4 else "dim"
    cells = (
        _line(printable(name), quiet),
        _line(f"{100 * here // size} %" if size else "", quiet),
        _line(format_size(size) if size else "", quiet),
        _line(f"{format_size(down)}/s" if down else ""),
        _line(f"{format_size(up)}/s" if up else ""),
        _line(str(peers) if peers else "", quiet),
        _line(told, style),
    )
    return _Row((rank, -(down + up) if moves else 0.0, name), cells)
