"""The user's own X display: whether it is reachable, its size, and connections to it.

The library of X clients (libxcb, xcb_util.c) has the rules of names. The greeting is X11's own
("Connection Setup").
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from p2pcloop.errors import GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.guest.display.access import COOKIE_NAME

_NAME = re.compile(r"(?:unix/?)?(?P<host>[^:/]*):(?P<number>\d{1,5})(?:\.\d+)?", re.ASCII)
_FIRST_PORT = 6000
_SECONDS = 10.0
_LOCAL, _ANY_HOST = 256, 0xFFFF
_MAX_AUTHORITY = 1 << 20
_SUCCESS = 1
_HINT = tr(
    "run it in a terminal of your desktop, or with `ssh -X`; `--display vnc` needs no X display"
)


@dataclass(frozen=True, slots=True)
class HostDisplay:
    """A display that let us in.

    Attributes:
        name: as DISPLAY has it.
        address: what a socket connects to: host and port, or the path of a socket.
        cookie: what clients show, or None if it asks for none.
        width: of its first screen, in pixels.
        height: of its first screen, in pixels.
    """

    name: str
    address: tuple[str, int] | str
    cookie: bytes | None
    width: int
    height: int


def find_host_display(environment: Mapping[str, str] = os.environ) -> HostDisplay:
    """Return the display of this process's user.

    Raises:
        GuestError: there is none, it cannot be reached, or it lets us not in.
    """
    name = environment.get("DISPLAY", "")
    match = _NAME.fullmatch(name)
    if match is None:
        what = tr("DISPLAY is {name!r}", name=printable(name)) if name else tr("DISPLAY is not set")
        raise GuestError(tr("there is no X display for the window: {what}", what=what), hint=_HINT)
    number = int(match["number"])
    cookie = _find_cookie(environment, match["host"], number)
    refused = ""
    for address in _addresses(match["host"], number):
        try:
            with _connected(address) as sock:
                width, height = _greet(sock, cookie)
            return HostDisplay(name, address, cookie, width, height)
        except (OSError, struct.error) as err:
            refused = getattr(err, "strerror", None) or str(err)
    raise GuestError(
        tr("the X display {name} cannot be used: {refused}", name=name, refused=printable(refused)),
        hint=_HINT,
    )


def _addresses(host: str, number: int) -> list[tuple[str, int] | str]:
    if host:
        return [(host, _FIRST_PORT + number)]
    path = f"/tmp/.X11-unix/X{number}"  # noqa: S108  where X servers listen
    return [path, f"\0{path}"]


def _connected(address: tuple[str, int] | str) -> socket.socket:
    if not isinstance(address, str):
        return socket.create_connection(address, _SECONDS)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_SECONDS)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def _greet(sock: socket.socket, cookie: bytes | None) -> tuple[int, int]:
    """Begin as an X client does; return the size of the first screen.

    Raises:
        OSError: the server refuses us, or hangs up.
        struct.error: it is no X server.
    """
    name, data = (COOKIE_NAME, cookie) if cookie else (b"", b"")
    hello = struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(name), len(data))
    with suppress(ConnectionError):  # it may refuse before it is greeted, and says why
        sock.sendall(hello + _padded(name) + _padded(data))
    status, said, size = struct.unpack("<BBxxxxH", _read(sock, 8))
    body = _read(sock, 4 * size)
    if status != _SUCCESS:
        raise PermissionError(
            tr("it refused us: {body}", body=body[:said].decode(errors="replace").strip())
        )
    vendor, formats = struct.unpack_from("<16xHxxxB", body)
    width, height = struct.unpack_from("<20xHH", body, 32 + (vendor + 3) // 4 * 4 + 8 * formats)
    return width, height


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("it hung up")
        data += piece
    return data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _find_cookie(environment: Mapping[str, str], host: str, number: int) -> bytes | None:
    """The cookie for a display from the user's Xauthority file; None if it has none."""
    home = environment.get("HOME", "/")
    path = Path(environment.get("XAUTHORITY") or f"{home}/.Xauthority")
    try:
        with path.open("rb") as file:
            entries = list(_entries(file.read(_MAX_AUTHORITY)))
    except OSError:
        return None
    is_local = host in ("", "localhost")
    name = (socket.gethostname() if is_local else host).encode()
    found = [
        (address == name, data)
        for family, address, display, kind, data in entries
        if kind == COOKIE_NAME
        and display in (b"", str(number).encode())
        and (family == _ANY_HOST or (family == _LOCAL) == is_local)
    ]
    # One that names this host counts first; hosts change their names.
    return max(found, default=(False, None), key=lambda each: each[0])[1]


def _entries(data: bytes) -> Iterator[tuple[int, bytes, bytes, bytes, bytes]]:
    """Family, address, number, name and data of each entry, up to a damaged one."""
    place = 0

    def field() -> bytes:
        nonlocal place
        (size,) = struct.unpack_from(">H", data, place)
        place += 2 + size
        return data[place - size : place]

    with suppress(struct.error):
        while True:
            (family,) = struct.unpack_from(">H", data, place)
            place += 2
            yield family, field(), field(), field(), field()
