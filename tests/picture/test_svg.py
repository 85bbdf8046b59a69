"""The picture of a chunk map: a golden file, valid XML, and no word of strangers as markup."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import ByteRange
from p2pcloop.picture.chunk_map import ChunkMap, Held, make_map
from p2pcloop.picture.layout import Layout, Part
from p2pcloop.picture.panels import CELL, COLUMNS, draw_panels
from p2pcloop.picture.svg import draw_svg

GOLDEN = Path(__file__).parents[1] / "data" / "chunk-map.svg"
TORRENT = bytes(20)
SVG = "{http://www.w3.org/2000/svg}"


def example(names: tuple[str, ...] = ("10.0.0.2:6881", "http://mirror/p2p/")) -> ChunkMap:
    """300 cells of 2 blocks, with a chunk in a piece each; the last 60 are zeros."""
    parts = [
        Part(n, 2 * n, 2, empty=n >= 240, place=ByteRange(TORRENT, 8 * n, 8) if n < 240 else None)
        for n in range(300)
    ]
    known = Held(
        8,
        bytes([n < 90 or n % 7 == 0 for n in range(240)]),
        coming=frozenset(range(90, 97)),
        senders=bytes([n % 3 for n in range(200)]),
        names=names,
    )
    touches = [Touch(2 * (n * 37 % 90), 1, 100 * n) for n in range(40)]
    return make_map(Layout(600, 2, parts), {TORRENT: known}, touches)


def test_the_picture_is_the_golden_file() -> None:
    drawn = draw_svg(example(), "@key/debian, version 2")
    if os.environ.get("P2PCLOOP_NEW_GOLDEN"):
        GOLDEN.write_text(drawn)
    assert drawn == GOLDEN.read_text()


def test_it_is_valid_and_tells_in_words_what_it_shows() -> None:
    root = ET.fromstring(draw_svg(example(), "@key/debian, version 2"))
    title, told = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert told is not None
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {told.get('id')}"
    assert title.text == "Chunk map of @key/debian, version 2"
    for words in ("missing", "on its way", "10.0.0.2:6881", "read last, after 3.9 s"):
        assert words in (told.text or "")
    *_, low = (float(n) for n in (root.get("viewBox") or "").split())
    assert all(0 < float(text.get("y") or 0) <= low for text in root.iter(f"{SVG}text"))


def test_each_cell_is_in_one_mark_of_each_panel() -> None:
    for panel in draw_panels(example()):
        seen: list[int] = []
        for mark in panel.marks:
            for run in filter(None, mark.path.split("M")):
                place, width, *_ = run.replace("v", "h").split("h")
                x, y = map(int, place.split())
                first = y // CELL * COLUMNS + x // CELL
                seen += range(first, first + int(width) // CELL)
        assert sorted(seen) == list(range(300))


def test_names_of_strangers_are_text() -> None:
    evil = "</text><script>alert(1)</script>\x1b[2J\u202e"
    drawn = draw_svg(example((evil, "http://" + "x" * 3000)), f"@key/{evil}")
    root = ET.fromstring(drawn)
    assert not list(root.iter(f"{SVG}script"))
    assert "\x1b" not in drawn
    assert max(len(text.text or "") for text in root.iter(f"{SVG}text")) <= 60


def test_many_senders_share_a_colour() -> None:
    parts = [Part(n, n, 1, place=ByteRange(TORRENT, n, 1)) for n in range(20)]
    known = Held(1, b"\1" * 20, senders=bytes(range(1, 21)), names=[f"p{n:02}" for n in range(20)])
    by_sender = draw_panels(make_map(Layout(20, 1, parts), {TORRENT: known}))[1]
    labels = [mark.label for mark in by_sender.marks]
    assert labels[:2] == ["p00, 4.1 kB", "p01, 4.1 kB"]
    assert labels[6] == "others, 57.3 kB"
