"""Messages for the user of a guest, on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress

from p2pcloop.text import printable
from p2pcloop.words import tr, translated


def say(done: str) -> None:
    """Tell the user what the guest has done; `done` is a sentence without its subject."""
    report(tr("p2pcloop: the guest {done}", done=printable(done)))


def report(text: str) -> None:
    """Write some lines, wherever the terminal's cursor stands."""
    # The guest may be in the middle of a line, and its terminal makes no carriage returns.
    end = "\r\n" if sys.stderr.isatty() else "\n"
    lines = ["" if sys.stderr.isatty() else None, *translated(text).splitlines(), ""]
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(end.join(line for line in lines if line is not None))
        sys.stderr.flush()
