"""Telling p2pcloopd at the end of a boot what of each torrent was used, so that it goes last."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease
from p2pcloopd.control_client import ControlClient

TELL_SECONDS = 5
"""A guest's end waits no longer than this: only the order of eviction depends on it."""

_log = logging.getLogger(__name__)


async def tell_booted(home: Home, lease: Lease, used: Mapping[bytes, bytes]) -> None:
    """End a lease; tell the p2pcloopd of a home, if one runs there, and what was used.

    Args:
        home: whose torrents were used.
        lease: of the image; it ends once it is known what was used.
        used: one bit a piece, most significant bit first, by torrent.
    """
    client = ControlClient(home.control_socket)
    with trio.move_on_after(TELL_SECONDS):
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(client.run)
                for torrent, pieces in used.items():
                    if any(pieces):  # none of a source that was not needed, maybe not even known
                        await client.call("booted", torrent=torrent, pieces=pieces)
                lease.close()
                await client.call("released")
                nursery.cancel_scope.cancel()
        except* P2pcloopError as err:
            _log.info("p2pcloopd was not told what was used: %s", err.exceptions[0])
    lease.close()
