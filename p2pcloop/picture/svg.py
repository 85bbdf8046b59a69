"""A chunk map as an SVG file of its own: `p2pcloop picture`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from p2pcloop.picture.chunk_map import ChunkMap
from p2pcloop.picture.panels import COLUMNS, WIDTH, Mark, Panel, draw_panels, grid_height
from p2pcloop.text import printable
from p2pcloop.units import BLOCK_SIZE, format_size

STYLE = Path(__file__).parent / "resources" / "chunk_map.css"
"""The style sheet of maps, for the web page, too."""

_MARGIN = 10
_LINE = 16
_SWATCH = 9


def draw_svg(chunk_map: ChunkMap, name: str) -> str:
    """Draw a map.

    It has a title and a description for those who do not see it, a legend, and colours for light
    and dark. It loads nothing from elsewhere.

    Args:
        name: of the image.
    """
    panels = draw_panels(chunk_map)
    title = f"Chunk map of {printable(name)}"
    size = format_size(chunk_map.blocks * BLOCK_SIZE)
    cell = format_size(chunk_map.per_cell * BLOCK_SIZE)
    about = f"A device of {size}; a cell is {cell}, {COLUMNS} cells a row."
    told = " ".join([about, *(panel.told for panel in panels)])
    body, top = [], _MARGIN + 2 * _LINE
    for panel in panels:
        lines, top = _panel(panel, top, grid_height(chunk_map))
        body += lines
    width = WIDTH + 2 * _MARGIN
    role = 'class="chunk-map" role="img" aria-labelledby="title desc"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" {role}>',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="desc">{escape(told)}</desc>',
            f"<style>\n{STYLE.read_text(encoding='ascii')}</style>",
            f'<rect class="paper" width="{width}" height="{top}"/>',
            _text(title, _MARGIN, _MARGIN + _LINE // 2, "head", most=44),
            _text(about, _MARGIN, _MARGIN + _LINE + _LINE // 2),
            *body,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, top: int, height: int) -> tuple[list[str], int]:
    """The lines of a panel, and where the next one begins."""
    lines = [_text(panel.title, _MARGIN, top + _LINE, "head")]
    top += _LINE + 6
    lines.append(f'<g transform="translate({_MARGIN} {top})" shape-rendering="crispEdges">')
    lines += [f'<path class="{mark.kind}" d="{mark.path}"/>' for mark in panel.marks if mark.path]
    lines.append("</g>")
    top += height + 4
    for row in _legend(panel.marks):
        top += _LINE
        at = _MARGIN
        for mark in row:
            y = top - _SWATCH
            square = f'width="{_SWATCH}" height="{_SWATCH}"'
            lines.append(f'<rect class="{mark.kind}" x="{at}" y="{y}" {square}/>')
            at += _SWATCH + (5 if mark.label else 0)
            if mark.label:
                lines.append(_text(mark.label, at, top))
                at += 80
    return lines, top + _LINE


def _legend(marks: Sequence[Mark]) -> Iterator[list[Mark]]:
    """The rows of a legend: a mark each, but for a ramp of marks without labels."""
    row: list[Mark] = []
    for mark in marks:
        ramp = mark.kind.startswith("order-")
        if not (mark.label or ramp):
            continue  # explained by another panel
        row.append(mark)
        if not ramp or mark is marks[-2]:
            yield row
            row = []


def _text(text: str, x: int, y: int, kind: str = "", most: int = 60) -> str:
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(shown)}</text>'
