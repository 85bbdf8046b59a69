"""A guest joins a LAN of its home: the side of the guest's own process.

A LAN belongs to a process of its own (lan_owner.py), which the first guest starts, and which ends
with its last guest. It listens at an abstract socket, so no file of it can be left behind.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from typing import Any, NamedTuple

import trio

from p2pcloop.client.interpreter import module_command
from p2pcloop.errors import BusyError, GuestError, P2pcloopError
from p2pcloop.protocol.control import ControlReceiver, Event, Failure, Message, Request, encode
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.guest.network.card import Card
from p2pcloopd.guest.network.forwarding import BoundPort
from p2pcloopd.guest.system.addresses import Addresses

_TRIES = 10
"""How often a LAN may end at the very moment at which a guest joins it."""

_ANOTHER_NAME = "give the LAN another name: `--net lan:NAME`"
_ANSWER_SECONDS = 60
_CHUNK = 1 << 16
_CREDENTIALS = struct.Struct("=iII")


class Credentials(NamedTuple):
    """Numbers of a process, its user and its group."""

    pid: int
    user: int
    group: int


@contextmanager
def joined(home: Home, lan: str, guest: str, ports: Sequence[BoundPort] = ()) -> Iterator[Card]:
    """A card of a LAN, while the context lasts; the LAN is made where there is none.

    Args:
        lan: its name, which is the home's own.
        guest: the name of the guest, by which others in the LAN find it.
        ports: of this machine, of TCP, which lead to the guest.

    Raises:
        P2pcloopError: there can be none, and what to do.
    """
    for _ in range(_TRIES):
        with ExitStack() as stack:
            owner = _connected(home, lan)
            if owner is None:  # another guest's does not listen yet
                continue
            answer = _ask(stack.enter_context(owner), guest, ports)
            if answer is None:  # it ended with its last guest
                continue
            facts, tap = answer
            stack.callback(os.close, tap)
            owner.settimeout(None)
            yield Card(tap, facts["mac"], facts["mtu"], Addresses(**facts["addresses"]), owner)
            return
    raise GuestError(
        tr("the LAN {lan} does not begin, or ends whenever a guest joins it", lan=lan),
        hint=tr("try again, or {another_name}", another_name=_ANOTHER_NAME),
    )


def address_of(home: Home, lan: str) -> bytes:
    """The abstract address (unix(7)) of a LAN's owner."""
    place = sha256(os.fsencode(home.root.resolve())).hexdigest()[:16]
    return f"\0p2pcloop/{os.geteuid()}/{place}/{lan}".encode()


def credentials(sock: socket.socket | trio.socket.SocketType) -> Credentials:
    """Of the process at the other end of a Unix socket."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(data))


def _connected(home: Home, lan: str) -> socket.socket | None:
    """A connection to the owner of a LAN, which is started where there is none; None if one has
    just begun, or ended."""
    address = address_of(home, lan)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before it connects: at a stranger's socket that takes no clients, it would wait for ever.
        sock.settimeout(_ANSWER_SECONDS)
        try:
            sock.connect(address)
        except ConnectionRefusedError:
            _start_owner(address)
            sock.connect(address)
        # Every user may take such an address.
        if credentials(sock).user != os.geteuid():
            raise BusyError(
                tr("another user's program has the place of the LAN {lan}", lan=lan),
                hint=_ANOTHER_NAME,
            )
    except ConnectionRefusedError:
        sock.close()
        return None
    except OSError as err:
        sock.close()
        raise GuestError(
            tr("the LAN {lan} cannot be reached: {why}", lan=lan, why=err.strerror),
            hint=_ANOTHER_NAME,
        ) from err
    except BaseException:
        sock.close()
        raise
    return sock


def _start_owner(address: bytes) -> None:
    """Start the process of a LAN; it goes into the background once it listens."""
    words = [*module_command("p2pcloopd.guest.network.lan_owner"), address[1:].decode()]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GuestError(
            tr("the process of the LAN does not start: {said}", said=" / ".join(said[-3:]))
        )


def _ask(
    owner: socket.socket, guest: str, ports: Sequence[BoundPort]
) -> tuple[dict[str, Any], int] | None:
    """Ask for a card: its facts and its tap. None if the owner ends without an answer."""
    receiver, fds = ControlReceiver(), list[int]()
    messages: list[Message] = []
    try:
        facts = {"guest": guest, "ports": [each.port.guest_port for each in ports]}
        # One message of some hundred bytes: the kernel takes it whole. An owner that cannot be one
        # answers before it is asked, and closes; its answer lies here all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(
                owner, [encode(Request(0, "join", facts))], [each.sock.fileno() for each in ports]
            )
        while not messages:
            data, given, _, _ = socket.recv_fds(owner, _CHUNK, 1)
            if not data:
                return None
            fds += given
            messages = receiver.receive(data)
    except TimeoutError as err:
        raise GuestError(
            tr("the LAN does not answer within {answer_seconds} s", answer_seconds=_ANSWER_SECONDS)
        ) from err
    except ConnectionResetError:
        return None
    match messages[0], fds:
        case Event(_, "card", facts), [tap]:
            return dict(facts), tap
        case Failure(_, error), []:
            raise error
    raise _nonsense()


def _nonsense() -> P2pcloopError:
    return GuestError("the LAN's process answers what this version does not understand")
