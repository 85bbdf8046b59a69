"""What each path of the page stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from p2pcloop.client.picture import Pictures
from p2pcloop.errors import FormatError, NotHereError
from p2pcloop.formats.packing import Fields
from p2pcloop.picture.panels import WIDTH, draw_panels, grid_height
from p2pcloop.picture.svg import STYLE
from p2pcloop.store.guests import find_guest
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import as_text, joined, tr
from p2pcloopd.web.console import follow_console, type_at
from p2pcloopd.web.http import Answer, Asked
from p2pcloopd.web.images import image_facts
from p2pcloopd.web.jobs import Jobs
from p2pcloopd.web.live import Live
from p2pcloopd.web.timeline import timeline_facts
from p2pcloopd.web.words import RESOURCES, page_in, said

_PAGE = "index.html"
_KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_STREAM = "text/event-stream"
_MAX_TYPED = 4096


class Site:
    """The page of a node."""

    def __init__(self, home: Home, jobs: Jobs, live: Live) -> None:
        self._home = home
        self._jobs = jobs
        self._live = live
        self._pictures = Pictures(home)
        self._files = {
            "" if path.name == _PAGE else path.name: path for path in RESOURCES.iterdir()
        } | {STYLE.name: STYLE}

    async def answer(self, asked: Asked) -> Answer | None:
        """Answer a request; see `Handler`."""
        if asked.method == "POST":
            return await self._post(asked)
        if (file := self._files.get(asked.path)) is not None:
            kind = f"{_KINDS[file.suffix]}; charset=utf-8"
            body = await trio.Path(file).read_bytes()
            if file.name == _PAGE:
                body = page_in(body.decode(), asked.language).encode()
            return Answer(body, kind)
        match asked.path:
            case "events":
                return Answer(self._live.follow, _STREAM)
            case "console":
                guest = find_guest(self._home, _query(asked, "guest")).record.name
                return Answer(partial(follow_console, self._home, guest), _STREAM)
            case "image":
                name = _query(asked, "name")
                return await _in_thread(image_facts, self._home, name, asked.language)
            case "timeline":
                return await _in_thread(timeline_facts, self._home, _query(asked, "guest"))
            case "map":
                return await _in_thread(self._map, _query(asked, "name"), asked.language)
        return None

    async def _post(self, asked: Asked) -> Answer | None:
        fields = _json(asked.body)
        if asked.path == "act":
            return _told({"job": self._jobs.start(fields, asked.language).number})
        if asked.path == "type":
            taken = Fields(fields, "what is typed")
            guest, text = taken.text("guest", 64), taken.path("text", _MAX_TYPED)
            taken.end()
            await type_at(self._home, guest, text)
            return _told({})
        return None

    def _map(self, name: str, language: str) -> dict[str, Any]:
        try:
            found = self._pictures.picture(name, fetch=False).chunk_map
        except NotHereError as err:
            told = map(as_text, filter(None, (err.message, err.hint)))
            return {"why": said(joined(": ", told), language)}
        panels = draw_panels(found)
        return {
            "width": WIDTH,
            "height": grid_height(found),
            "panels": [
                {
                    "title": said(panel.title, language),
                    "told": said(panel.told, language),
                    "marks": [
                        [mark.kind, said(mark.label, language), mark.path] for mark in panel.marks
                    ],
                }
                for panel in panels
            ],
        }


async def _in_thread(work: Callable[..., Any], *args: object) -> Answer:
    return _told(await trio.to_thread.run_sync(partial(work, *args)))


def _told(value: object) -> Answer:
    return Answer(to_json(value).encode())


def _query(asked: Asked, name: str) -> str:
    if name not in asked.query:
        raise FormatError(tr("the address lacks `{name}`", name=name))
    return asked.query[name]


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise FormatError(tr("the request is no JSON: {err}", err=err)) from err
    if not isinstance(value, dict):
        raise FormatError("the request is no map")
    return value
