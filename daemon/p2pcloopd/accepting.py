"""Takes connections of a socket that listens, also where the system has no room for one now."""

from __future__ import annotations

import errno

import trio

PAUSE = 1.0
"""Seconds until connections are taken again where the system has no room for one."""

NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of accept(2) that pass."""


async def accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """Take the next connection. One that has gone is passed over, and one for which the system has
    no descriptor or memory waits (accept(2), Errors): neither ends what the others have.

    Raises:
        OSError: the listener can be used no more.
    """
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as err:
            if err.errno in NO_ROOM:
                await trio.sleep(PAUSE)
            elif err.errno != errno.ECONNABORTED:
                raise
        else:
            return connection
