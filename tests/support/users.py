"""Running a program as an ordinary user, where root runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

NOBODY_ELSE = 61183
"""A user and a group without a name: next to systemd's dynamic ones, which come and go."""

AS_ANOTHER_USER = (
    *("setpriv", f"--reuid={NOBODY_ELSE}", f"--regid={NOBODY_ELSE}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all"),
)
"""Words before a command that root runs as an ordinary user."""


def can_be_another_user() -> str | None:
    """Why no program can be run as an ordinary user here; None if it can."""
    if os.geteuid() != 0:
        return "an ordinary user runs the tests already"
    for folder in (CHECKOUT, *CHECKOUT.parents):
        if not folder.stat().st_mode & 0o001:
            return f"other users cannot enter {folder}"
    return None


needs_another_user = pytest.mark.skipif(
    can_be_another_user() is not None, reason=str(can_be_another_user())
)
