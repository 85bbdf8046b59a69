"""QEMU's machine protocol: what QEMU sends, in any pieces, and what is no message of it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.protocol.qmp import (
    MAX_LINE,
    Greeting,
    MachineEvent,
    QmpReceiver,
    Refusal,
    Return,
    encode_command,
)

# As QEMU 7.2 sends them.
SENT = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"},'
    b' "capabilities": ["oob"]}}\r\n'
    b'{"return": {}, "id": 0}\r\n'
    b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "VSERPORT_CHANGE",'
    b' "data": {"open": true, "id": "port1-1"}}\r\n'
    b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n'
    b'{"id": 7, "error": {"class": "GenericError", "desc": "Bus \'ports.0\' not found"}}\r\n'
    b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'
)
MESSAGES = [
    Greeting((7, 2, 22)),
    Return(0, {}),
    MachineEvent("VSERPORT_CHANGE", {"open": True, "id": "port1-1"}),
    MachineEvent("STOP", {}),
    Refusal(7, "Bus 'ports.0' not found"),
    Refusal(None, "JSON parse error"),
]


@given(st.lists(st.integers(0, len(SENT)), max_size=8))
def test_messages_come_whole_in_whatever_pieces(cuts: list[int]) -> None:
    receiver = QmpReceiver()
    places = [0, *sorted(cuts), len(SENT)]
    found = [
        message for start, end in pairwise(places) for message in receiver.receive(SENT[start:end])
    ]
    assert found == MESSAGES


def test_a_command_is_one_line_of_json() -> None:
    line = encode_command(3, "getfd", {"fdname": "a\nb"})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"execute": "getfd", "arguments": {"fdname": "a\nb"}, "id": 3}


@pytest.mark.parametrize(
    "line",
    [b"hello", b"[1]", b"7", b'{"return": {}}', b'{"error": {}, "id": 1}', b'{"QMP": {}}',
     b'{"return": {}, "id": "x"}', b"{}", b'{"event": "X", "data": 5}', b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(FormatError, match="protocol"):
        QmpReceiver().receive(line + b"\n")


@given(st.binary(max_size=200))
def test_bytes_are_messages_or_refused(data: bytes) -> None:
    try:
        QmpReceiver().receive(data + b"\n")
    except FormatError:
        return


def test_a_message_without_end_is_not_kept_for_ever() -> None:
    receiver = QmpReceiver()
    with pytest.raises(FormatError, match="more than"):
        for _ in range(MAX_LINE // 4096 + 1):
            receiver.receive(b"x" * 4096)
