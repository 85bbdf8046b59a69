"""The commands' end of the control socket: one blocking call at a time, no event loop."""

from __future__ import annotations

import itertools
import os
import select
import socket  # noqa: TID251  the one place in p2pcloop/ that talks: commands need no event loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from p2pcloop import __version__
from p2pcloop.client.progress import Wait
from p2pcloop.errors import DaemonError
from p2pcloop.protocol.control import (
    CONTROL_VERSION,
    ControlReceiver,
    Event,
    Failure,
    Message,
    RemoteControlError,
    Reply,
    Request,
    encode,
)
from p2pcloop.store.home import Home
from p2pcloop.store.socket_path import socket_address
from p2pcloop.words import tr

OnEvent = Callable[[str, dict[str, Any]], None]
_RECEIVE_SIZE = 1 << 18

AWAITED = {
    "check_mirror": tr("the answers of the mirror"),
    "fetch": tr("the image"),
    "gc": tr("room on the disk to be given back"),
    "manifest": tr("the description of a version"),
    "read": tr("content of the image"),
    "remove": tr("the image to be removed"),
    "resolve": tr("the description of the image"),
    "seed": tr("the content to be hashed"),
    "suspend": tr("the guest to be suspended"),
    "verify": tr("the content to be read"),
}
"""What a user waits for during operations that can take long."""


class NotRunningError(DaemonError):
    """No p2pcloopd serves the control socket."""


class ControlClient:
    """A connection to p2pcloopd; closing it cancels the call that runs.

    Attributes:
        pid: the process id of p2pcloopd.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._receiver = ControlReceiver()
        self._received: list[Message] = []
        self._ids = itertools.count()
        self.pid: int = 0

    @classmethod
    def connect(cls, home: Home) -> Self:
        """Connect to the p2pcloopd that runs on `home` and agree on the version.

        Raises:
            NotRunningError: no p2pcloopd serves this home.
            DaemonError: p2pcloopd speaks another version of the protocol, or went away.
        """
        try:
            return cls.connect_to(home.control_socket)
        except NotRunningError as err:
            raise NotRunningError(
                tr("no p2pcloopd runs on {root}", root=home.root),
                hint=tr(
                    "start one with `p2pcloop daemon start {home}`",
                    home=home.option,
                ),
            ) from err

    @classmethod
    def connect_to(cls, path: Path) -> Self:
        """Connect to the program that serves a control socket and agree on the version.

        Raises:
            NotRunningError: none serves it.
            DaemonError: it speaks another version of the protocol, or went away.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(path) as address:
                connection.connect(os.fsencode(address))
            client = cls(connection)
            client.pid = client.call("hello", version=CONTROL_VERSION, software=__version__)["pid"]
        except (FileNotFoundError, ConnectionRefusedError) as err:
            connection.close()
            raise NotRunningError(tr("nothing serves {path}", path=path)) from err
        except OSError as err:
            connection.close()
            raise DaemonError(tr("cannot connect to {path}: {err}", path=path, err=err)) from err
        except BaseException:
            connection.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def call(self, op: str, on_event: OnEvent | None = None, **args: object) -> dict[str, Any]:
        """Ask for an operation and wait for its reply, as long as it takes.

        Args:
            op: one of the operations in docs/formats/control.md.
            on_event: called with the name and the fields of each event before the reply.
            args: the operation's arguments, of msgpack's types; None is not sent.

        Raises:
            P2pcloopError: of the class that was raised in p2pcloopd.
            DaemonError: p2pcloopd went away, or broke the protocol.
        """
        given = {name: value for name, value in args.items() if value is not None}
        request = Request(next(self._ids), op, given)
        with _naming_loss(op):
            self._connection.sendall(encode(request))
        wait = Wait(AWAITED.get(op, "p2pcloopd"))
        try:
            return self._take_reply(request, on_event, wait)
        finally:
            wait.end()

    def _take_reply(self, request: Request, on_event: OnEvent | None, wait: Wait) -> dict[str, Any]:
        while True:
            with _naming_loss(request.op):
                message = self._next(wait)
            match message:  # what `on_event` raises is its own, a full disk say
                case Reply(request.id, result):
                    return result
                case Failure(request.id, error):
                    raise error
                case Event(request.id, event, fields) if on_event is not None:
                    on_event(event, fields)
                    wait.put_off()

    def _next(self, wait: Wait) -> Message:
        """The next message; a terminal shows meanwhile what is waited for."""
        while not self._received:
            while (pause := wait.pause()) is not None and not self._is_readable(pause):
                wait.draw()
            data = self._connection.recv(_RECEIVE_SIZE)
            if not data:
                raise EOFError
            self._received = self._receiver.receive(data)
        return self._received.pop(0)

    def _is_readable(self, seconds: float) -> bool:
        """Whether something comes, or the connection ends, within a time."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


@contextmanager
def _naming_loss(op: str) -> Iterator[None]:
    """Report errors of the connection as what they mean: p2pcloopd is lost."""
    try:
        yield
    except (OSError, EOFError, RemoteControlError) as err:
        raise DaemonError(
            tr("lost p2pcloopd during `{op}`: {err}", op=op, err=str(err) or tr("it went away")),
            hint="daemon.log in the node's home says why",
        ) from err
