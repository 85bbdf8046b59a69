"""Takes connections of a socket that listens, also where the system has no room for one now."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

_log = logging.getLogger(__name__)

Connection = TypeVar("Connection")

PAUSE = 0.1
"""Seconds until connections are taken again where the system has no room for one."""

CALM = 10.0
"""Seconds without a refusal after which the next connection shows that there is room again. Where
clients wait, one that hangs up makes room for the next one only."""

_GONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EPERM,
        errno.EPROTO,
    }
)
"""Errors of the connection that would be the next one (accept(2), Errors)."""

_NO_ROOM = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "raise the limit fs.file-max of sysctl(8)",
    errno.ENOBUFS: "free some memory",
    errno.ENOMEM: "free some memory",
}
"""Errors that pass, and what a user can do about them."""

_last_refusal = trio.lowlevel.RunVar[float | None]("_last_refusal", None)
"""Of all listeners of this process; None while there is room."""


async def accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """Take the next connection. One that has gone is passed over, and one for which the system has
    no descriptor or memory waits: neither ends what the others have.

    Raises:
        OSError: the listener can be used no more.
    """
    connection, _ = await _take(listener.accept)
    return connection


async def pass_over(err: OSError) -> None:
    """Return once a connection may be taken again after accept(2) has failed.

    Raises:
        OSError: `err`: the listener can be used no more.
    """
    if err.errno in _GONE:
        await trio.lowlevel.checkpoint()
        return
    advice = _NO_ROOM.get(err.errno or 0)
    if advice is None:
        raise err
    if _last_refusal.get() is None:
        _log.warning("new clients wait until others have hung up: %s; %s", err.strerror, advice)
    _last_refusal.set(trio.current_time())
    await trio.sleep(PAUSE)


def note_taken() -> None:
    """A connection was taken."""
    refused = _last_refusal.get()
    if refused is not None and trio.current_time() - refused > CALM:
        _last_refusal.set(None)
        _log.info("there is room for new clients again")


async def _take(accept: Callable[[], Awaitable[Connection]]) -> Connection:
    while True:
        try:
            connection = await accept()
        except OSError as err:
            await pass_over(err)
        else:
            note_taken()
            return connection


async def serve(
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    listeners: list[trio.SocketListener],
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `handler` for each connection, until cancelled.

    As `trio.serve_listeners`, which tells of a system without room ten times a second, each time
    with a traceback; `accept` tells what becomes of connections that cannot be taken.

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
            nursery.start_soon(handle, await _take(listener.accept))
