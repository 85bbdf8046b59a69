"""The table of JSON keys in docs/commands.md: for the manual pages, and for tests of what is
printed."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
_PAGE = CHECKOUT / "docs/commands.md"
_CONTROL = CHECKOUT / "docs/formats/control.md"

_CODE = re.compile(r"`([^`]+)`")


def json_rows(page: Path = _PAGE) -> list[tuple[str, str]]:
    """The rows of the table: what prints the JSON, and its keys, both in Markdown."""
    section = page.read_text().partition("\n## JSON\n")[2]
    table = section.partition("\n\n`boot` and `run`")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)
    return [row for row in rows if row[0] not in ("command", "---")]


def commands_of(cell: str) -> list[str]:
    """The commands of a row's first cell: "`config set`, `limit` with options"."""
    return [re.sub(r" --.*", "", name) for name in _CODE.findall(cell)]


def rows_of(command: str) -> list[tuple[str, str]]:
    """The rows of a command, named without `p2pcloop`."""
    return [row for row in json_rows() if command in commands_of(row[0])]


def keys_of(command: str) -> set[str]:
    """All keys that the JSON of a command may have, at whatever depth.

    Where its row names other commands, or an operation of the control protocol, their keys, too.
    """
    found: set[str] = set()
    wanted, seen = [command], set()
    while wanted:
        name = wanted.pop()
        seen.add(name)
        for _, keys in rows_of(name):
            words = set(_CODE.findall(keys))
            found |= words
            wanted += [word for word in words if word not in seen and rows_of(word)]
            if "formats/control.md" in keys:
                found |= set(_CODE.findall(_CONTROL.read_text()))
    return found


def undocumented(command: str, answer: object) -> set[str]:
    """The keys in what a command printed that its rows do not have.

    Looks into lists of objects, and not into other objects, whose keys may be data.
    """
    known = keys_of(command) | {"error"}
    found: set[str] = set()
    if isinstance(answer, dict):
        for key, value in answer.items():
            found |= {key} - known
            for item in value if isinstance(value, list) else ():
                found |= set(item) - known if isinstance(item, dict) else set()
    return found
