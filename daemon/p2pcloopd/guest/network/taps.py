"""Taps: network cards whose frames a program reads and writes by a descriptor.

A tap that is not persistent is gone once its last descriptor is closed, however its holder ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

from p2pcloop.errors import BusyError, GuestError, P2pcloopError
from p2pcloop.words import tr

_DEVICE = "/dev/net/tun"

# linux/if_tun.h, linux/sockios.h, linux/if.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_HEADER = 0x0002, 0x1000
_GET_FLAGS, _SET_FLAGS, _SET_MTU, _GET_MTU = 0x8913, 0x8914, 0x8922, 0x8921
_GET_INDEX, _ADD_TO_BRIDGE, _SET_ADDRESS = 0x8933, 0x89A2, 0x8924
_ETHERNET = 1
_ETHTOOL, _GET_DRIVER, _DRIVER_SIZE = 0x8946, 3, 196
_UP = 1
# linux/rtnetlink.h, linux/if_link.h, linux/if_bridge.h
_NEW_LINK, _REQUEST_WITH_ANSWER, _NESTED = 16, 0x5, 0x8000
_ADDRESS, _LINK_INFO, _INFO_KIND, _INFO_DATA, _BRIDGE_SWITCHES = 1, 18, 1, 2, 46
_NO_LINK_LOCAL_LEARNING = 1 << 0
_NAME_SIZE = 16
_REQUEST = struct.Struct(f"{_NAME_SIZE}s24x")
"""struct ifreq."""


def check_device() -> None:
    """Check that this user may make taps.

    Raises:
        GuestError: the device they are made from is missing, or cannot be opened.
    """
    try:
        os.close(_open_device())
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise GuestError(
                tr(
                    "cannot open {tun}, from which network cards are made: {why}",
                    tun=_DEVICE,
                    why=err.strerror,
                ),
                hint=_closed_hint(),
            ) from err
        raise GuestError(
            tr("this machine has no {tun}, from which network cards are made", tun=_DEVICE),
            hint=tr(
                "load the kernel's module as root: `modprobe tun`; in a container: give it the"
                " device (`docker run --device {tun}`)",
                tun=_DEVICE,
            ),
        ) from err


def _open_device() -> int:
    return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)


def _closed_hint() -> str:
    return tr(
        "all users need to read and write it, as in Debian: `chmod 666 /dev/net/tun`, as root"
    )


def open_tap(template: str, mtu: int, bridge: str | None = None) -> int:
    """Make a tap in the network namespace of this process, and set it up.

    Args:
        template: its name, in which the kernel replaces `%d` by the first free number.
        mtu: bytes of its longest IP packet.
        bridge: an interface that it becomes a port of.

    Returns:
        Its descriptor, from which frames are read one by one; a guest's kernel may have it.

    Raises:
        OSError: the kernel refused; nothing remains.
    """
    tap = _open_device()
    try:
        request = struct.pack(f"{_NAME_SIZE}sH22x", template.encode(), _TAP | _NO_HEADER)
        name = fcntl.ioctl(tap, _TUNSETIFF, request)[:_NAME_SIZE].rstrip(b"\0")
        forget_offloads(tap)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            _set(sock, _SET_MTU, name, mtu)
            if bridge is not None:
                # The highest addresses there are: a bridge takes the lowest one of its ports.
                address = b"\xfe\x70\x32" + os.urandom(3)
                own = struct.pack(f"={_NAME_SIZE}sH6s16x", name, _ETHERNET, address)
                fcntl.ioctl(sock, _SET_ADDRESS, own)
                _set(sock, _ADD_TO_BRIDGE, bridge.encode(), _get(sock, _GET_INDEX, name))
            # Only now: it has no moment at which it is up, and not in the bridge.
            _set(sock, _SET_FLAGS, name, _get(sock, _GET_FLAGS, name) & 0xFFFF | _UP)
    except BaseException:
        os.close(tap)
        raise
    return tap


def forget_offloads(tap: int) -> None:
    """Forget what an earlier reader of the tap could do (checksums, long segments): UML can do
    nothing of it, and connections of a guest after a reboot would hang."""
    fcntl.ioctl(tap, _TUNSETOFFLOAD, 0)


def set_up_bridge(name: str, mac: str) -> None:
    """Give a bridge its hardware address, and keep it from learning senders of link-local frames
    (to 01:80:c2:00:00:00 and up to 0f). Rules of nftables do not see these before they are learned:
    a station could take another one's place.

    Raises:
        OSError: the kernel refused.
    """
    switches = _attribute(
        _BRIDGE_SWITCHES, struct.pack("=II", _NO_LINK_LOCAL_LEARNING, _NO_LINK_LOCAL_LEARNING)
    )
    kind = _attribute(_INFO_KIND, b"bridge\0")
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)
    body += _attribute(_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    body += _attribute(_LINK_INFO | _NESTED, kind + _attribute(_INFO_DATA | _NESTED, switches))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        head = struct.pack("=IHHII", 16 + len(body), _NEW_LINK, _REQUEST_WITH_ANSWER, 1, 0)
        sock.sendto(head + body, (0, 0))
        (code,) = struct.unpack_from("=i", sock.recv(1 << 12), 16)
    if code:
        raise OSError(-code, os.strerror(-code))


def _attribute(kind: int, value: bytes) -> bytes:
    """An attribute of netlink(7)."""
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def is_bridge(name: str) -> bool:
    """Whether an interface is a bridge, by the name of its driver (SIOCETHTOOL). /sys would tell of
    the network namespace in which it was mounted, which may be another one.

    Raises:
        OSError: there is no such interface.
    """
    told = ctypes.create_string_buffer(struct.pack("=I", _GET_DRIVER), _DRIVER_SIZE)
    request = struct.pack(f"{_NAME_SIZE}sP16x", name.encode(), ctypes.addressof(told))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _ETHTOOL, request)
        except OSError as err:
            if err.errno == errno.EOPNOTSUPP:  # as the loopback says
                return False
            raise
    return told.raw[4:36].rstrip(b"\0") == b"bridge"


def is_up(name: str) -> bool:
    """Whether an interface is set up.

    Raises:
        OSError: there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return bool(_get(sock, _GET_FLAGS, name.encode()) & _UP)


def interface_mtu(name: str) -> int:
    """Bytes of the longest IP packet of an interface.

    Raises:
        OSError: there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return _get(sock, _GET_MTU, name.encode())


def _get(sock: socket.socket, number: int, name: bytes) -> int:
    answer = fcntl.ioctl(sock, number, _REQUEST.pack(name))
    (value,) = struct.unpack_from("=i", answer, _NAME_SIZE)
    return int(value)


def _set(sock: socket.socket, number: int, name: bytes, value: int) -> None:
    fcntl.ioctl(sock, number, struct.pack(f"={_NAME_SIZE}si20x", name, value))


def cannot_make_card(err: OSError, place: str) -> P2pcloopError:
    """The error of a tap that cannot be made."""
    if err.errno == errno.EBUSY:
        return BusyError(tr("there is such a network card {place} already", place=place))
    return GuestError(
        tr("no network card can be made {place}: {why}", place=place, why=err.strerror),
        hint=_closed_hint() if err.filename == _DEVICE else None,
    )
