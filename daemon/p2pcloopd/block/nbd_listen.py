"""Where an NBD server listens: exactly the address that the user named."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2pcloop.errors import BusyError, UsageError
from p2pcloop.words import tr
from p2pcloopd.unix_listener import unix_listener

_HINT = tr(
    "give unix:PATH, HOST:PORT or [IPV6]:PORT, such as unix:/tmp/disk.nbd or 127.0.0.1:10809"
)


@asynccontextmanager
async def open_nbd_listeners(address: str) -> AsyncIterator[list[trio.SocketListener]]:
    """Listen on `unix:PATH` (mode 0600) or `HOST:PORT`; a socket file is removed at the end.

    Port 0 lets the system choose: see the listener's `socket.getsockname()`. A host name is
    resolved, and all its addresses are listened on.

    Raises:
        UsageError: the address cannot be parsed or not be listened on.
        NotHereError, StorageError: the socket file cannot be made.
        BusyError: another program listens there already.
    """
    if address.startswith("unix:"):
        with unix_listener(_parse_path(address)) as listener:
            yield [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        return
    host, port = _parse_host_port(address)
    listeners = await _listen_tcp(host, port, address)
    try:
        yield listeners
    finally:
        for each in listeners:
            each.socket.close()


def check_nbd_address(address: str, *, tls: bool, insecure: bool) -> str | None:
    """Refuse an address that is not to be listened on; return a warning if one is due.

    Args:
        address: as for `open_nbd_listeners`.
        tls: clients must start TLS.
        insecure: the user wants TCP without TLS.

    Raises:
        UsageError: the address cannot be parsed, or is TCP and neither `tls` nor `insecure` is set.
    """
    if address.startswith("unix:"):
        _parse_path(address)
        return None
    host, _ = _parse_host_port(address)
    if tls:
        return None
    if not insecure:
        raise UsageError(
            tr(
                "NBD over TCP at {address} would let every user of this machine, and every"
                " machine that reaches it, read the image and write to the overlay",
                address=address,
            ),
            hint="serve at unix:PATH, ask for TLS with --tls-certificates DIR, or say --insecure",
        )
    return tr(
        "every client that reaches {address} reads the image, and writes to the overlay"
        " if there is one; nothing is encrypted",
        address=address,
    ) + ("" if is_loopback(host) else tr(", and it can be reached from other machines"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_path(address: str) -> Path:
    path = address.removeprefix("unix:")
    if not path or "\0" in path:
        raise UsageError(tr("{address!r} names no socket file", address=address), hint=_HINT)
    return Path(path)


def _parse_host_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    named = host and (bracketed == (":" in host)) and not set(host) & set("[]/ \0")
    if not colon or not named or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise UsageError(
            tr("{address!r} is not an address to listen on", address=address), hint=_HINT
        )
    if int(port) > 65535:
        raise UsageError(tr("{address!r} has a port above 65535", address=address), hint=_HINT)
    return host, int(port)


async def _listen_tcp(host: str, port: int, address: str) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except (OSError, UnicodeError) as err:
        if isinstance(err, OSError) and err.errno == errno.EADDRINUSE:
            raise BusyError(
                tr("another program listens on {address} already", address=address)
            ) from err
        raise UsageError(
            tr("cannot listen on {address}: {err}", address=address, err=err), hint=_HINT
        ) from err
