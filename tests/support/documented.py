"""Whether docs/commands.md lists the keys of JSON that a command printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2pcloop.cli.commands import ALIASES
from tools.json_table import rows_of, undocumented


def check_documented(words: Sequence[str | Path], answer: object) -> None:
    """Compare what `p2pcloop WORDS --json` printed with the table in the manual."""
    names = [str(word) for word in words[:2]]
    names[0] = ALIASES.get(names[0], names[0])
    command = " ".join(names) if rows_of(" ".join(names)) else names[0]
    assert rows_of(command), f"docs/commands.md has no JSON of {command}"
    missing = undocumented(command, answer)
    assert not missing, f"docs/commands.md does not list {missing} of {command}"
