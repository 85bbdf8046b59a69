"""An image that is all here is found without p2pcloopd, which then starts later.

Such an image can be booted from the home alone. p2pcloopd is started all the same, to seed, but not
before the guest is up. It then resolves what the user gave, as it does at any other time: so it
knows the sources that a link names.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from p2pcloop.client.control_client import ControlClient, OnEvent
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.link import is_link, parse_link
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.place import Place, parse_place
from p2pcloop.store.have import is_whole
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records

_log = logging.getLogger(__name__)


class LateClient(ControlClient):
    """A connection that is made at the first call; p2pcloopd is started then, if none runs."""

    def __init__(self, home: Home, asked: str, at: int) -> None:
        """`asked` and `at` are what p2pcloopd is to resolve first."""
        self._home = home
        self._asked = asked
        self._at = at
        self._made: ControlClient | None = None

    def begin(self) -> ControlClient:
        """Connect, if that was not done yet.

        Raises:
            P2pcloopError: p2pcloopd does not start, or does not know the image.
        """
        if self._made is None:
            client = ensure_daemon(self._home, warn=_log.warning)
            client.call("resolve", ref=self._asked, at=self._at)
            self._made = client
        return self._made

    def call(self, op: str, on_event: OnEvent | None = None, **args: object) -> dict[str, Any]:
        """See `ControlClient.call`; errors of `begin`, too."""
        return self.begin().call(op, on_event, **args)

    def close(self) -> None:
        """See `ControlClient.close`."""
        if self._made is not None:
            self._made.close()


def find_whole(asked: str, home: Home, at: int = 0, *, in_part: bool = False) -> StoredRef | None:
    """Find an image that is known here, and all of whose layers are here.

    Args:
        asked: a link, or a name with or without a place to look at, as `read_ref` returns them.
        at: the version that is wanted, 0 for that of a link or the newest known of a name.
        in_part: the layers need not be here.

    Returns:
        What p2pcloopd would find, with a `LateClient`. None where p2pcloopd has to be asked: an
        image that is not known or not whole, and all that p2pcloopd would refuse.
    """
    try:
        link = parse_link(asked) if is_link(asked) else None
        place = Place(link.name) if link is not None else parse_place(asked)
        records = Records(home)
        known = records.find(place.name)
        if known is None or place.base:  # else the user wants it looked up there
            return None
        wanted = known.versions[at or known.version].id
        if link is not None and link.manifest_id != wanted:
            return None
        signed = records.manifest(wanted)
        if signed.manifest.withdrawn or not (in_part or is_all_here(signed, home)):
            return None
    except (P2pcloopError, KeyError):
        return None
    secret = known.link.secret if link is None or link.secret is None else link.secret
    told = str(replace(known.link, secret=secret))
    return StoredRef(signed, str(known.name), told, LateClient(home, asked, at))


def is_all_here(signed: SignedManifest, home: Home) -> bool:
    """Whether all layers of an image are here, so that p2pcloopd is not needed to read it."""
    layers = signed.manifest.all_layers
    return all(is_whole(home.torrents / layer.torrent.hex() / "have") for layer in layers)
