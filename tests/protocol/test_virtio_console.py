"""The console device's messages and queues, as a guest's driver has them."""

from __future__ import annotations

import struct

import pytest

from p2pcloop.protocol import virtio_console as vc
from p2pcloop.protocol.virtio_console import Control, Event
from p2pcloop.protocol.virtqueue import VirtqueueError


def test_messages() -> None:
    assert Control(3, Event.PORT_OPEN, 0).encode() == struct.pack("<IHH", 3, 6, 0)
    named = Control(1, Event.PORT_NAME, name="stdout").encode()
    assert named == struct.pack("<IHH", 1, 7, 1) + b"stdout"
    assert vc.parse_control(struct.pack("<IHH", 2, 3, 1)) == Control(2, Event.PORT_READY)
    assert vc.parse_control(struct.pack("<IHH", 2, 99, 7)) == Control(2, 99, 7)


@pytest.mark.parametrize("data", [b"", b"1234567", bytes(5000)])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(VirtqueueError):
        vc.parse_control(data)


def test_queues() -> None:
    """virtio 1.2, section 5.3.2: 0 and 1 of port 0, 2 and 3 of control, 4 and 5 of port 1."""
    assert vc.queue_count(4) == 10
    assert [vc.port_of(queue) for queue in (0, 1, 4, 5, 8, 9)] == [
        *((0, True), (0, False), (1, True), (1, False), (3, True), (3, False)),
    ]
    assert vc.config_space(4)[4:8] == struct.pack("<I", 4)


def test_as_much_is_filled_in_as_there_is_room_for() -> None:
    first, second = bytearray(3), bytearray(4)
    views = [memoryview(first), memoryview(second)]
    assert vc.fill(views, b"abcde") == 5
    assert bytes(first + second) == b"abcde\0\0"
    assert vc.fill(views, b"0123456789") == 7
