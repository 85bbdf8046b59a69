"""The shell scripts of resources/: for a guest's first root, and for the start of a sandbox."""

from __future__ import annotations

from importlib import resources


def script(name: str) -> str:
    """Return the script resources/NAME.sh."""
    return resources.files("p2pcloopd.guest").joinpath("resources", f"{name}.sh").read_text()
