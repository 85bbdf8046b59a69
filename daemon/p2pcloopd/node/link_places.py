"""Where this node's own links led so far: `link-places` in the home, text, one a line.

A link of an earlier version of a name is where the node finds it again. So the addresses that the
node had then come among those of the other peers and mirrors, and later links would name them for
ever. p2pcloopd alone writes the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from p2pcloop.formats.named import read_file
from p2pcloop.store.home import replace_file

MAX_PLACES = 512
"""Those named last: a node that is moved each day needs them for a year."""

_MAX_LINE = 300

_log = logging.getLogger(__name__)


class LinkPlaces:
    """The node's own places, now and before: `host:port` of peers, and base URLs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places = dict.fromkeys(_load(path))

    def __contains__(self, place: str) -> bool:
        return place in self._places

    def note(self, places: Iterable[str]) -> None:
        """Keep what a link is about to name, durably.

        Raises:
            StorageError: the system refused.
        """
        now = [place for place in places if len(place) < _MAX_LINE]
        before = [*self._places]
        known = [place for place in before if place not in now] + now
        if known != before:
            self._places = dict.fromkeys(known[-MAX_PLACES:])
            replace_file(self._path, "".join(f"{place}\n" for place in self._places).encode())


def _load(path: Path) -> list[str]:
    """A file that cannot be read costs no more than a longer link."""
    try:
        data = read_file(path, MAX_PLACES * _MAX_LINE)
    except FileNotFoundError:
        return []
    except OSError as err:
        _log.warning("%s is not used: %s", path, err)
        return []
    return data.decode(errors="replace").splitlines()[-MAX_PLACES:]
