"""How far a VNC viewer and its server are: the handshake of RFB (RFC 6143, 7.1), sans-io.

Only the server tells whether the viewer may come in: by what it sends once it has checked the
viewer's answer. VeNCrypt carries the same in TLS. What its records hold cannot be read from
outside, but that there are some can: the first of the server asks for the password.
"""

from __future__ import annotations

import struct

_VERSION = 12
_CHOOSES_TYPE = b"RFB 003.007\n"
"""In older versions the server chooses the security type."""

_CHALLENGE = 16
_VENCRYPT = 19
_CHOSEN = slice(_VERSION + 1 + 2, _VERSION + 1 + 2 + 4)
"""Where a viewer tells VeNCrypt's subtype, behind its version; the ones below 256 are without
TLS."""

_BEFORE_SUBTYPES = 2 + 1 + 1
_RECORD = struct.Struct(">BxxH")
_APPLICATION_DATA = 23


def is_past_handshake(viewer: bytes, server: bytes) -> bool:
    """Whether a server that asks for a password has told what it makes of the viewer's answer. If
    it was wrong, the server ends the connection.

    Args:
        viewer: all that the viewer has sent, or at least its first 19 bytes.
        server: all that the server has sent.
    """
    if len(viewer) < _VERSION or len(server) <= _VERSION:
        return False
    if viewer[:_VERSION] < _CHOOSES_TYPE:
        return len(server) > _VERSION + 4 + _CHALLENGE
    said = server[_VERSION + 1 + server[_VERSION] :]
    if viewer[_VERSION : _VERSION + 1] == bytes([_VENCRYPT]):
        if len(said) < _BEFORE_SUBTYPES:
            return False
        said = said[_BEFORE_SUBTYPES + 4 * said[_BEFORE_SUBTYPES - 1] :]
        if viewer[_CHOSEN] >= (256).to_bytes(4):
            return _count_data(said[1:]) > 1
    return len(said) > _CHALLENGE


def _count_data(stream: bytes) -> int:
    """The records with data, in a stream of TLS (RFC 5246, 6.2.1)."""
    place = found = 0
    while place + _RECORD.size <= len(stream):
        kind, length = _RECORD.unpack_from(stream, place)
        found += kind == _APPLICATION_DATA
        place += _RECORD.size + length
    return found
