"""TCP_NODELAY on libtorrent's sockets.

libtorrent has no setting for it, and without it a piece of demand takes 44 to 48 ms over loopback
where it takes about 1 ms with it (Nagle's algorithm against delayed acknowledgements;
findings/libtorrent-nodelay.sh). Its sockets are this process's file descriptors, so they can be
found there. Accepted connections inherit the option from the listening socket (Linux).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterator


def listening(port: int) -> bool:
    """Set it on the sockets that listen on a port; tell whether there was one."""

    def wanted(sock: socket.socket) -> bool:
        return (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            and sock.getsockname()[1] == port
        )

    return _set(wanted)


def connected(peer: tuple[str, int]) -> bool:
    """Set it on the connections to an address; tell whether there was one."""
    address = ipaddress.ip_address(peer[0])

    def wanted(sock: socket.socket) -> bool:
        host, port = sock.getpeername()[:2]
        return port == peer[1] and ipaddress.ip_address(host.partition("%")[0]) == address

    return _set(wanted)


def _set(wanted: Callable[[socket.socket], bool]) -> bool:
    found = False
    for sock in _tcp_sockets():
        with sock:
            try:
                if wanted(sock):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    found = True
            except OSError:
                continue  # not connected, or closed by libtorrent's thread meanwhile
    return found


def _tcp_sockets() -> Iterator[socket.socket]:
    """Duplicates of all TCP sockets of this process; the caller closes each."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names only, no paths
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # closed by libtorrent's thread meanwhile
        if sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6):
            yield sock
        else:
            sock.close()
