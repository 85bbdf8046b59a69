"""What tests of the commands start from."""

from __future__ import annotations

from tests.support.command import home, p2pcloop

__all__ = ["home", "p2pcloop"]
