"""Takes connections of a socket that listens, also where the system has no room for one now."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable

import trio

_log = logging.getLogger(__name__)

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


async def serve(
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    listeners: list[trio.SocketListener],
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `handler` for each connection, until cancelled.

    As `trio.serve_listeners`, which tells of a system without room ten times a second, each time
    with a traceback.

    Args:
        listeners: closed at the end.
        task_status: told of them once connections are taken.
    """
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_serve, listener, handler, nursery)
        task_status.started(listeners)


async def _serve(
    listener: trio.SocketListener,
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    nursery: trio.Nursery,
) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        finally:
            await trio.aclose_forcefully(stream)

    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except OSError as err:
                if err.errno not in NO_ROOM:
                    raise
                _log.warning("a connection cannot be taken: %s", err)
                await trio.sleep(PAUSE)
            else:
                nursery.start_soon(handle, stream)
