"""The server's side of a WebSocket: what it takes, and what it refuses."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.protocol.websocket import (
    MAX_FRAME,
    WebSocketReader,
    accept_key,
    encode_bytes,
    encode_close,
)

# The example of RFC 6455, section 1.3.
REQUEST = {
    b"upgrade": b"websocket",
    b"connection": b"keep-alive, Upgrade",
    b"sec-websocket-version": b"13",
    b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
}


def frame(kind: int, data: bytes, mask: bytes = b"\x37\xfa\x21\x3d") -> bytes:
    """A frame of a browser; `kind` with the bits before it."""
    if len(data) < 126:
        size = struct.pack(">B", 0x80 | len(data))
    elif len(data) < 1 << 16:
        size = struct.pack(">BH", 0x80 | 126, len(data))
    else:
        size = struct.pack(">BQ", 0x80 | 127, len(data))
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
    return bytes([kind]) + size + mask + masked


def test_a_request_is_answered_as_in_the_rfc() -> None:
    assert accept_key(REQUEST) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    "change",
    [
        {b"upgrade": b"h2c"},
        {b"connection": b"keep-alive"},
        {b"sec-websocket-version": b"8"},
        {b"sec-websocket-key": b"short"},
        {b"sec-websocket-key": base64.b64encode(bytes(15))},
    ],
)
def test_other_requests_are_refused(change: dict[bytes, bytes]) -> None:
    with pytest.raises(FormatError):
        accept_key(REQUEST | change)
    with pytest.raises(FormatError):
        accept_key({})


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50))
def test_bytes_come_whole_however_they_are_cut(messages: list[bytes], step: int) -> None:
    data = b"".join(frame(0x82, message) for message in messages)
    reader = WebSocketReader()
    found = [reader.feed(data[n : n + step]) for n in range(0, len(data), step)]
    assert b"".join(stream for stream, _ in found) == b"".join(messages)
    assert not any(answer for _, answer in found)


def test_large_frames_fragments_pings_and_the_end() -> None:
    reader = WebSocketReader()
    large = bytes(range(256)) * 300
    assert reader.feed(frame(0x82, large)) == (large, b"")
    assert reader.feed(frame(0x02, b"one ") + frame(0x89, b"?")) == (b"one ", b"\x8a\x01?")
    assert reader.feed(frame(0x80, b"two") + frame(0x8A, b"")) == (b"two", b"")
    assert not reader.closed
    close = frame(0x88, struct.pack(">H", 1001) + b"gone")
    assert reader.feed(close + b"more") == (b"", b"\x88\x02\x03\xe9")
    assert reader.closed


@pytest.mark.parametrize(
    "data",
    [
        frame(0x81, b"text"),
        frame(0x83, b""),
        frame(0xC2, b"reserved bit"),
        b"\x82\x04open",  # without a mask
        frame(0x89, bytes(126)),
        frame(0x09, b"in pieces"),
        struct.pack(">BBQ", 0x82, 0xFF, MAX_FRAME + 1),
        struct.pack(">BBQ", 0x82, 0xFF, (1 << 64) - 1),
    ],
)
def test_what_no_browser_sends_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        WebSocketReader().feed(data)


def test_what_is_sent() -> None:
    assert encode_bytes(b"ab") == b"\x82\x02ab"
    assert encode_bytes(bytes(126))[:4] == b"\x82\x7e\x00\x7e"
    assert encode_bytes(bytes(1 << 16))[:10] == b"\x82\x7f" + (1 << 16).to_bytes(8, "big")
    assert encode_close() == b"\x88\x02\x03\xe8"
