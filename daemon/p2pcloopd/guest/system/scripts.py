"""The shell scripts of resources/: for a guest's first root, and for the start of a sandbox."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent.parent / "resources"


def script(name: str) -> str:
    """Return the script resources/NAME.sh."""
    return resource(f"{name}.sh")


def resource(name: str) -> str:
    """Return the text of a file of resources/."""
    return (_FOLDER / name).read_text()
