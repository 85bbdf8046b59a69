"""The program `p2pcloop`: Ctrl-C ends it without a traceback while its modules are loaded, too."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from p2pcloop.cli.main import main as run  # noqa: PLC0415  the reason for this module

        run()
    except KeyboardInterrupt:
        sys.exit(130)
