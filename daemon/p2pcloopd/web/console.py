"""A guest's console, for the page: its text as it comes, and words that are typed."""

from __future__ import annotations

import re
from typing import Any

import trio

from p2pcloop.errors import NotHereError, P2pcloopError
from p2pcloop.store.guests import GuestFolder, find_guest
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.control_client import ControlClient
from p2pcloopd.web.http import Push
from p2pcloopd.web.live import encode_event

_SHOWN = 16 << 10
"""Bytes of the log of a guest that has ended which are shown: the last ones."""

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
"""Control sequences of terminals (ECMA-48): CSI, strings such as a window's title, and others."""

_LINE_ENDS = re.compile(r"\r+\n|\r")


def plain_text(text: str) -> str:
    r"""What is left of a console's text without what terminals obey; lines end with \n.

    A sequence that is cut in two leaves some of its letters, and nothing that a page obeys.
    """
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text))
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


async def follow_console(home: Home, name: str, push: Push) -> None:
    """Send the text of a guest's console as events, until the guest ends or the browser goes.

    Raises:
        StorageError: the log of a guest that has ended cannot be read.
    """
    folder = GuestFolder(home, name)
    client = ControlClient(folder.socket_path, tr("the guest {name}", name=name))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            await _follow(client, push)
    except* P2pcloopError:
        log = bytearray()
        await trio.to_thread.run_sync(folder.read_log, log.extend)
        text = plain_text(bytes(log[-_SHOWN:]).decode(errors="replace"))
        await push(encode_event("ended", {"text": text}))


async def _follow(client: ControlClient, push: Push) -> None:
    position, rest = -1, b""
    while True:
        answer: dict[str, Any] = await client.call("console_output", after=position)
        position = answer["position"] + len(answer["data"])
        data, rest = whole_characters(rest + answer["data"])
        await push(encode_event("text", {"text": plain_text(data.decode(errors="replace"))}))


def whole_characters(data: bytes) -> tuple[bytes, bytes]:
    """Cut off the bytes at the end that begin a character of UTF-8 and do not end it."""
    for back, byte in enumerate(reversed(data[-3:]), 1):
        if byte >= 0xC0:
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2
            return (data[:-back], data[-back:]) if back < length else (data, b"")
        if byte < 0x80:
            break
    return data, b""


async def type_at(home: Home, name: str, text: str) -> None:
    """Type at a guest's console.

    Raises:
        NotHereError: there is no such guest, or it does not run.
        P2pcloopError: it went away.
    """
    folder = GuestFolder(home, find_guest(home, name).record.name)
    if not folder.socket_path.exists():
        raise NotHereError(tr("the guest {name} does not run", name=name))
    client = ControlClient(folder.socket_path, tr("the guest {name}", name=name))
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await client.call("console_input", data=text.encode())
        nursery.cancel_scope.cancel()
