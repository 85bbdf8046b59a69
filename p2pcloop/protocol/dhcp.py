"""The two messages of DHCP by which a client finds servers: DISCOVER and OFFER, as Ethernet frames.

Whole frames, since a client has no address yet, and the address of another program on this machine
must not be needed. Source: RFC 2131 (messages), RFC 2132 (options), RFC 791, RFC 768.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Final

_CLIENT: Final = 68
_SERVER: Final = 67
_IPV4: Final = 0x0800
_UDP: Final = 17
_BROADCAST: Final = b"\xff" * 6
_COOKIE: Final = bytes([99, 130, 83, 99])
_DISCOVER: Final = 1
_OFFER: Final = 2
_MESSAGE_TYPE: Final = 53
_SERVER_ID: Final = 54
_PAD: Final = 0
_END: Final = 255

_ETHERNET = struct.Struct(">6s6sH")
_IP = struct.Struct(">BBHHHBBH4s4s")
_UDP_HEADER = struct.Struct(">HHHH")
_BOOTP = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s")


def discover_frame(mac: bytes, transaction: int) -> bytes:
    """Return the frame that asks all servers of a network to offer an address.

    Args:
        mac: the hardware address that it comes from, 6 bytes.
        transaction: 32 bits that the answers will have.
    """
    none = bytes(4)
    flags = 0x8000  # answers by broadcast: the client has no address yet
    bootp = _BOOTP.pack(
        *(1, 1, 6, 0, transaction, 0, flags, none, none, none, none), mac.ljust(16, b"\0"), b"", b""
    )
    options = bytes([_MESSAGE_TYPE, 1, _DISCOVER, 55, 3, 1, 3, 6, _END])
    payload = (bootp + _COOKIE + options).ljust(300, b"\0")
    # A checksum of 0 is none (RFC 768).
    datagram = _UDP_HEADER.pack(_CLIENT, _SERVER, _UDP_HEADER.size + len(payload), 0) + payload
    size = _IP.size + len(datagram)
    header = _IP.pack(0x45, 0, size, 0, 0, 64, _UDP, 0, none, b"\xff" * 4)
    header = _IP.pack(0x45, 0, size, 0, 0, 64, _UDP, _checksum(header), none, b"\xff" * 4)
    return _ETHERNET.pack(_BROADCAST, mac, _IPV4) + header + datagram


def _checksum(header: bytes) -> int:
    total = sum(int.from_bytes(header[at : at + 2]) for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse_offer(frame: bytes, transaction: int) -> IPv4Address | None:
    """Return the server that a frame comes from, where it is an offer to `transaction`; else None.

    Any bytes may be given.
    """
    payload = _datagram(frame)
    if payload is None or len(payload) < _BOOTP.size + len(_COOKIE):
        return None
    operation, *_ = fields = _BOOTP.unpack_from(payload)
    if operation != 2 or fields[4] != transaction:
        return None
    if payload[_BOOTP.size : _BOOTP.size + 4] != _COOKIE:
        return None
    options = _parse_options(payload[_BOOTP.size + 4 :])
    server = options.get(_SERVER_ID, b"")
    if options.get(_MESSAGE_TYPE) != bytes([_OFFER]) or len(server) != 4:
        return None
    return IPv4Address(server)


def _datagram(frame: bytes) -> bytes | None:
    """The payload of a frame from a DHCP server to a client."""
    if len(frame) < _ETHERNET.size + _IP.size:
        return None
    *_, kind = _ETHERNET.unpack_from(frame)
    packet = frame[_ETHERNET.size :]
    length = (packet[0] & 15) * 4
    if kind != _IPV4 or packet[0] >> 4 != 4 or packet[9] != _UDP:
        return None
    if length < _IP.size or len(packet) < length + _UDP_HEADER.size:
        return None
    source, target, *_ = _UDP_HEADER.unpack_from(packet, length)
    if (source, target) != (_SERVER, _CLIENT):
        return None
    return packet[length + _UDP_HEADER.size :]


def _parse_options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 1 >= len(data):
            break
        end = at + 2 + data[at + 1]
        options[data[at]] = data[at + 2 : end]
        at = end
    return options
