"""Look at a display until its desktop is complete and still; print when that was.

Run as a program on the host where the guest runs: `python -m bench.links.watch_desktop ADDRESS
PASSWORD LOOK PICTURE SECONDS`. It prints the time.monotonic() of the last change, and what was
missing from the desktop whenever the picture was still before; `inf` if nothing has changed for
two minutes and something is missing still.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from tools import desktop_look
from tools.vnc import NotShownError, Viewer


def watch(viewer: Viewer, look: desktop_look.Look, still: float, seen: list[str]) -> None:
    """Wait until nothing is missing and nothing changes.

    Args:
        still: seconds without a change.
        seen: gets what was missing at still pictures before.

    Raises:
        NotShownError: nothing changes, and something is missing.
    """
    while True:
        viewer.wait_until_still(still)
        missing = look.missing(viewer)
        if not missing:
            return
        seen.append(f"still without {', '.join(missing)}")
        viewer.wait_for_change()


def main(address: str, password: str, look: str, picture: str, still: str) -> None:
    """Watch one display."""
    with Viewer(address, password) as viewer:
        seen: list[str] = []
        try:
            watch(viewer, desktop_look.LOOKS[look], float(still), seen)
            at = viewer.changed
        except NotShownError:
            at = math.inf
        viewer.save(Path(picture))
    print(at, *seen, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
