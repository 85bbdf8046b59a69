"""Where a user's home of p2pcloop lies if none is given. A completion of the shell asks this, too:
so it loads nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping


def default_root(environment: Mapping[str, str]) -> str:
    """The path, which may begin with `~` (XDG Base Directory Specification, XDG_DATA_HOME)."""
    data = environment.get("XDG_DATA_HOME", "").strip() or "~/.local/share"
    return os.path.join(data, "p2pcloop")  # noqa: PTH118  pathlib takes long to load
