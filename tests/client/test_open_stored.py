"""Stored images that commands read from end to end."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcloop.client import open_stored
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.link import Link
from p2pcloop.formats.name import Name
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.stored import StoredImage
from p2pcloop.store.home import Home
from p2pcloop.store.lease import leased


def test_a_command_keeps_decoded_chunks_in_a_file_of_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else chunks of chains that it reads out of order are decoded again and again."""
    options: dict[str, Any] = {}
    image = SimpleNamespace(open=lambda **given: options.update(given))
    monkeypatch.setattr(StoredImage, "of_home", lambda *_: image)
    monkeypatch.setattr(open_stored, "Lease", lambda *_: None)
    signed = SimpleNamespace(id=bytes(32), manifest=None)
    ref = SimpleNamespace(client=None, signed=signed, secret=None)
    home = Home(tmp_path)
    open_stored.Source(cast(StoredRef, ref), home).open()
    assert options == {"spill": home.tmp}


def test_p2pcloopd_is_asked_for_a_range_in_the_words_that_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for one of a chain, in whose place the layers below have ranges."""
    taken: list[tuple[ByteRange, bytes]] = []
    asked: list[dict[str, Any]] = []
    image = SimpleNamespace(accept=lambda *given: taken.append(given))
    monkeypatch.setattr(StoredImage, "of_home", lambda *_: image)
    monkeypatch.setattr(open_stored, "Lease", lambda *_: None)

    def call(op: str, _on_event: object, **args: Any) -> dict[str, Any]:
        asked.append({"op": op, **args})
        return {"data": bytes(args["length"])}

    signed = SimpleNamespace(id=bytes(32), manifest=None)
    ref = SimpleNamespace(client=SimpleNamespace(call=call), signed=signed, secret=None)
    below = ByteRange(bytes(20), 0, 4096)
    wanted = ByteRange(bytes(20), 8192, 4096, instead=(below,))
    open_stored.Source(cast(StoredRef, ref), Home(tmp_path)).supply(Missing([wanted]))
    assert taken == [(wanted, bytes(4096))]
    assert asked == [
        {"op": "read", "torrent": bytes(20), "offset": 8192, "length": 4096, "heal": False}
    ]


def test_what_a_stack_has_closed_is_no_longer_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command may open many images, one after the other."""
    home = Home.at(tmp_path / "home")
    home.create()
    image = SimpleNamespace(open=lambda **_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(StoredImage, "of_home", lambda *_: image)
    monkeypatch.setattr(open_stored, "ensure_daemon", lambda _: nullcontext())
    signed = SimpleNamespace(id=bytes(32), manifest=None)
    link = str(Link(Name(bytes(32), "image"), bytes(32), bytes(20)))
    ref = StoredRef(cast(Any, signed), "image", link, cast(Any, None))
    with ExitStack() as stack:
        open_stored.open_stored(ref, home, stack)
        assert leased(home) == {bytes(32)}
    assert leased(home) == set()
