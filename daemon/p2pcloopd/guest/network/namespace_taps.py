"""Makes taps in another network namespace: a process that goes there, and hands descriptors out.

A process can enter a user namespace only while it has one thread, and comes out of none, so it is a
child of its own. It ends when its parent does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Self

from p2pcloop.errors import GuestError
from p2pcloopd.guest.network.lan_plan import BRIDGE, BRIDGE_MAC, UPLINK
from p2pcloopd.guest.network.taps import cannot_make_card, open_tap, set_up_bridge
from p2pcloopd.guest.system.addresses import MTU

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_MAX_MESSAGE = 256
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_NO_IPV6 = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")


class TapMaker:
    """The process, forked here: this must be called before trio runs, and without other threads."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            # It would keep what its parent closes, as the address of the LAN.
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
            _serve(theirs)
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        os.waitpid(self._pid, 0)

    def enter(self, pid: int) -> None:
        """Go into the user and network namespaces of a process, and let that network forward. Its
        bridge is there already.

        Raises:
            GuestError: the kernel refused.
        """
        fd = os.pidfd_open(pid)
        try:
            self._ask("enter", [fd])
        finally:
            os.close(fd)

    def uplink(self) -> tuple[int, socket.socket]:
        """Make the tap to the outside: its descriptor, and a socket whose frames come out of it.

        Raises:
            GuestError: the kernel refused.
        """
        tap, frames = self._ask("uplink")
        return tap, socket.socket(fileno=frames)

    def card(self, interface: str) -> int:
        """Make a guest's tap, a port of the bridge; its descriptor.

        Raises:
            GuestError: the kernel refused.
        """
        (tap,) = self._ask(f"card {interface}")
        return tap

    def dial(self) -> socket.socket:
        """Make a TCP socket in the namespace.

        Raises:
            GuestError: the kernel refused.
        """
        (made,) = self._ask("dial")
        return socket.socket(fileno=made)

    def _ask(self, message: str, fds: list[int] | None = None) -> list[int]:
        # An answer takes less than a millisecond: no other task needs to run meanwhile.
        answer, given = b"", list[int]()
        with suppress(ConnectionError):
            socket.send_fds(self._ours, [message.encode()], fds or [])
            answer, given, _, _ = socket.recv_fds(self._ours, _MAX_MESSAGE, 2)
        if answer == b"done":
            return given
        if not answer:
            raise GuestError("the process that makes the LAN's network cards has ended")
        code, _, path = answer.decode().partition(" ")
        err = OSError(int(code), os.strerror(int(code)), path or None)
        raise cannot_make_card(err, "in the LAN's namespace") from err


def _serve(sock: socket.socket) -> NoReturn:
    """Do what the parent asks for, until it has ended."""
    try:
        while True:
            message, fds, _, _ = socket.recv_fds(sock, _MAX_MESSAGE, 1)
            if not message:
                os._exit(0)
            try:
                made = _do(message.decode().split(), fds)
            except OSError as err:
                told = f"{err.errno or errno.EIO} {err.filename or ''}"
                sock.send(told.encode()[:_MAX_MESSAGE])
                continue
            socket.send_fds(sock, [b"done"], made)
            for fd in made:
                os.close(fd)
    finally:
        os._exit(1)


def _do(words: list[str], fds: list[int]) -> list[int]:
    match words:
        case ["enter"]:
            _enter(fds[0])
            with suppress(FileNotFoundError):  # a kernel without IPv6
                _NO_IPV6.write_text("1")
            _FORWARDING.write_text("1")
            set_up_bridge(BRIDGE, BRIDGE_MAC)
            return []
        case ["uplink"]:
            tap = open_tap(UPLINK, MTU)
            frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: it receives nothing
            frames.bind((UPLINK, 0))
            return [tap, frames.detach()]
        case ["card", interface]:
            return [open_tap(interface, MTU, BRIDGE)]
        case ["dial"]:
            return [socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()]
    raise OSError(errno.EINVAL, "no such request")


def _enter(pidfd: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(pidfd, _NEW_USER | _NEW_NET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.close(pidfd)
