"""The management console's packets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.protocol import mconsole


def test_request() -> None:
    assert mconsole.encode_request("cad") == struct.pack("=III", 0xCAFEBABE, 2, 3) + b"cad"


def test_request_that_does_not_fit() -> None:
    mconsole.encode_request("x" * 511)
    with pytest.raises(ValueError, match="limit"):
        mconsole.encode_request("x" * 512)


def test_reply() -> None:
    packet = struct.pack("=III", 1, 1, 4) + b"bad\0"
    assert mconsole.decode_reply(packet) == mconsole.Reply(failed=True, more=True, text="bad")


@given(st.binary(max_size=600))
def test_any_packet_parses_or_is_a_format_error(packet: bytes) -> None:
    try:
        reply = mconsole.decode_reply(packet)
    except FormatError:
        return
    assert len(reply.text) <= mconsole.MAX_DATA
