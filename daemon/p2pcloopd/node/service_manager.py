"""What a service manager hands to p2pcloopd, and what it is told: sd_listen_fds(3), sd_notify(3).

The environment tells of both. p2pcloopd takes these variables out of it: they are not meant for
the programs that it starts.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from p2pcloop.errors import UsageError
from p2pcloop.words import tr

FIRST_FD = 3
"""The first descriptor that is passed (SD_LISTEN_FDS_START)."""

_log = logging.getLogger(__name__)


def take_passed_socket(
    control_socket: Path,
    environment: MutableMapping[str, str] = os.environ,
    fd: int = FIRST_FD,
) -> socket.socket | None:
    """Return the listening socket that the service manager made for us, or None if there is none.

    Args:
        control_socket: where the home's clients connect: there the socket must be bound.
        environment: that of this process; it loses what it says of sockets.
        fd: the descriptor that is passed.

    Raises:
        UsageError: more than one is passed, or it is another kind of socket, or bound elsewhere.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    hint = tr("its unit needs one ListenStream={control_socket}", control_socket=control_socket)
    if count != "1":
        raise UsageError(
            tr("the service manager passes {count} sockets, not one", count=count), hint=hint
        )
    try:
        passed = socket.socket(fileno=fd)
    except OSError as err:
        raise UsageError(
            tr("the service manager passes no socket: {why}", why=err.strerror), hint=hint
        ) from err
    passed.set_inheritable(False)
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not _listens(passed):
        passed.close()
        raise UsageError("the service manager passes a socket that accepts no clients", hint=hint)
    bound = os.fsdecode(passed.getsockname())
    if Path(bound).resolve() != control_socket.resolve():
        passed.close()
        raise UsageError(
            tr("the socket that the service manager passes is {bound}", bound=bound), hint=hint
        )
    return passed


def _listens(passed: socket.socket) -> bool:
    return bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def notify_service_manager(state: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell the service manager that started us how we are, if it wants to know.

    Args:
        state: `READY=1` once clients can connect, or `STOPPING=1`, which is the last.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if state == "STOPPING=1":
        environment.pop("NOTIFY_SOCKET", None)
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # one without a file (unix(7), abstract)
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
        telling.connect(address)
        telling.sendall(state.encode())
        return
    _log.warning("the service manager does not hear of %s", state)
