"""Tells p2pcloopd at the end of a boot which pieces were used: these are evicted last."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease
from p2pcloopd.control_client import ControlClient

TELL_SECONDS = 5
"""The end of a guest waits no longer than this: only the order of eviction depends on it."""

_log = logging.getLogger(__name__)


async def report_booted(home: Home, lease: Lease, used: Mapping[bytes, bytes]) -> None:
    """End a lease, and report the used pieces to the p2pcloopd of a home, if one runs there.

    Args:
        home: whose torrents were used.
        lease: of the image; it ends after the report.
        used: by torrent, one bit a piece, most significant bit first.
    """
    client = ControlClient(home.control_socket)
    with trio.move_on_after(TELL_SECONDS):
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(client.run)
                for torrent, pieces in used.items():
                    if any(pieces):  # an unused source has none, and may not even be known
                        await client.call("booted", torrent=torrent, pieces=pieces)
                lease.close()
                await client.call("released")
                nursery.cancel_scope.cancel()
        except* P2pcloopError as err:
            _log.info("p2pcloopd was not told what was used: %s", err.exceptions[0])
    lease.close()
