"""From outside a handshake of RFB is seen to be over exactly when the server has judged."""

from __future__ import annotations

import struct

import pytest

from p2pcloop.protocol.rfb import is_past_handshake

VNC_AUTH, VENCRYPT = 2, 19
GREETING, CHALLENGE, RESULT = b"RFB 003.008\n", bytes(range(16)), bytes(4)
HANDSHAKE, DATA = 22, 23
CHOOSES = GREETING + bytes([VENCRYPT]) + b"\0\2"


def pack(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def record(kind: int, size: int) -> bytes:
    return struct.pack(">BHH", kind, 0x303, size) + bytes(size)


OFFERED = (GREETING, bytes([2, VENCRYPT, VNC_AUTH]), b"\0\2", b"\0", b"\2" + pack(258, VNC_AUTH))
"""VeNCrypt's version, that it is accepted, two subtypes."""

IN_TLS = (b"\1", record(HANDSHAKE, 700), record(20, 1), record(HANDSHAKE, 40), record(DATA, 40))


@pytest.mark.parametrize(
    ("viewer", "said"),
    [
        (GREETING + bytes([VNC_AUTH]), (GREETING, bytes([2, VENCRYPT, VNC_AUTH]), CHALLENGE)),
        (b"RFB 003.007\n" + bytes([VNC_AUTH]), (GREETING, bytes([1, VNC_AUTH]), CHALLENGE)),
        (b"RFB 003.003\n" + CHALLENGE, (GREETING, pack(VNC_AUTH), CHALLENGE)),
        (CHOOSES + pack(VNC_AUTH), (*OFFERED, CHALLENGE)),
        (CHOOSES + pack(258), (*OFFERED, *IN_TLS)),
    ],
    ids=["3.8", "3.7", "3.3", "VeNCrypt", "TLS"],
)
def test_a_viewer_is_past_its_handshake_once_the_server_has_judged(
    viewer: bytes, said: tuple[bytes, ...]
) -> None:
    before = b"".join(said)
    judged = before + (record(DATA, 28) if IN_TLS[-1] in said else RESULT)
    assert not any(is_past_handshake(viewer, before[:end]) for end in range(len(before) + 1))
    assert is_past_handshake(viewer, judged)
    assert is_past_handshake(viewer + bytes(100), judged + bytes(100))


def test_nothing_that_a_viewer_sends_alone_is_enough() -> None:
    for viewer in (b"", GREETING, GREETING + bytes(1 << 10), bytes([255]) * 100):
        assert not is_past_handshake(viewer, b"")
        assert not is_past_handshake(viewer, GREETING)
    assert not is_past_handshake(GREETING[:11], GREETING + bytes(100))
