"""The control protocol: what is sent arrives, however it is cut; anything else is refused."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop import errors
from p2pcloop.errors import CorruptError, DaemonError, FormatError, P2pcloopError, StorageError
from p2pcloop.protocol import control
from p2pcloop.protocol.control import (
    Cancel,
    ControlReceiver,
    Event,
    Failure,
    LocalControlError,
    Message,
    RemoteControlError,
    Reply,
    Request,
    encode,
)

IDS = st.integers(0, control.MAX_ID)
NAMES = st.text(min_size=1, max_size=control.MAX_NAME)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)
EVENT_FIELDS = FIELDS.map(lambda fields: {f"_{key}": value for key, value in fields.items()})
MESSAGES = (
    st.builds(Request, IDS, NAMES, FIELDS)
    | st.builds(Reply, IDS, FIELDS)
    | st.builds(Event, IDS, NAMES, EVENT_FIELDS)
    | st.builds(Cancel, IDS)
)


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=5))
def test_messages_arrive_whole(messages: list[Message]) -> None:
    stream = b"".join(map(encode, messages))
    receiver = ControlReceiver()
    assert receiver.receive(stream) == messages
    assert receiver.pending == 0


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=3))
def test_messages_arrive_byte_by_byte(messages: list[Message]) -> None:
    stream = b"".join(map(encode, messages))
    receiver = ControlReceiver()
    received = [each for byte in stream for each in receiver.receive(bytes([byte]))]
    assert received == messages
    assert receiver.pending == 0


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteControlError):
        ControlReceiver().receive(data)


@settings(deadline=None)
@given(st.binary(max_size=200) | VALUES.map(msgpack.packb))
def test_any_body_is_a_message_or_refused(body: bytes) -> None:
    try:
        messages = ControlReceiver().receive(len(body).to_bytes(4) + body)
    except RemoteControlError:
        return
    assert ControlReceiver().receive(encode(messages[0])) == messages


@settings(deadline=None)
@given(st.data())
def test_a_flipped_byte_is_a_message_or_refused(data: st.DataObject) -> None:
    stream = bytearray(encode(data.draw(MESSAGES)))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(RemoteControlError):
        ControlReceiver().receive(stream)


def test_an_incomplete_message_is_pending() -> None:
    receiver = ControlReceiver()
    frame = encode(Cancel(7))
    assert receiver.receive(frame + frame[:-1]) == [Cancel(7)]
    assert receiver.pending == len(frame) - 1
    assert receiver.receive(frame[-1:]) == [Cancel(7)]


@pytest.mark.parametrize("length", [0, control.MAX_FRAME + 1, 0xFFFFFFFF])
def test_a_bad_length_is_refused_before_its_body(length: int) -> None:
    with pytest.raises(RemoteControlError):
        ControlReceiver().receive(length.to_bytes(4))


def test_the_largest_read_fits_in_a_frame() -> None:
    reply = Reply(control.MAX_ID, {"data": bytes(control.MAX_READ)})
    assert ControlReceiver().receive(encode(reply)) == [reply]


def test_too_large_a_message_is_our_own_bug() -> None:
    with pytest.raises(LocalControlError):
        encode(Reply(1, {"data": bytes(control.MAX_FRAME)}))


@pytest.mark.parametrize("value", [object(), 1 << 64, {1, 2}])
def test_what_msgpack_cannot_say_is_our_own_bug(value: object) -> None:
    with pytest.raises(LocalControlError):
        encode(Request(1, "read", {"offset": value}))


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"id": 1},
        {"id": -1, "op": "read", "args": {}},
        {"id": True, "op": "read", "args": {}},
        {"id": 1 << 63, "op": "read", "args": {}},
        {"id": 1, "op": "", "args": {}},
        {"id": 1, "op": "x" * 65, "args": {}},
        {"id": 1, "op": "read", "args": []},
        {"id": 1, "op": "read", "args": {}, "more": 1},
        {"id": 1, "op": b"read", "args": {}},
        {"id": 1, "ok": True, "result": None},
        {"id": 1, "ok": False, "error": {}},
        {"id": 1, "ok": False, "error": {"kind": "StorageError", "message": "", "hint": None}},
        {"id": 1, "ok": 2, "result": {}},
        {"cancel": "1"},
        {"cancel": 1, "id": 1},
    ],
)
def test_a_map_that_is_no_message_is_refused(body: object) -> None:
    frame = msgpack.packb(body)
    with pytest.raises(RemoteControlError):
        ControlReceiver().receive(len(frame).to_bytes(4) + frame)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc7\x00\x05",  # an empty extension
        msgpack.packb({"id": 1, "op": "x", "args": {"t": msgpack.Timestamp(1)}}),
        b"\x82\xa6cancel\x01\xa6cancel\x02",  # a key twice
        b"\x81\xc4\x06cancel\x01",  # a key of bytes
        b"\x81\xa6cancel\x01\x00",  # bytes left over
        b"\x81\xa2\xff\xff\x01",  # no UTF-8
        b"\x91" * 100_000,  # deep
        b"\xdd\xff\xff\xff\xff",  # a list said to be huge
        b"\xdb\xff\xff\xff\xff",
    ],
)
def test_msgpack_that_was_not_agreed_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteControlError):
        ControlReceiver().receive(len(body).to_bytes(4) + body)


def test_errors_come_back_as_what_they_were() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, P2pcloopError) and kind is not StorageError
    ]
    assert len(kinds) > 8
    for kind in kinds:
        [failure] = ControlReceiver().receive(encode(Failure(3, kind("what", hint="do"))))
        assert isinstance(failure, Failure)
        assert type(failure.error) is kind
        assert (str(failure.error), failure.error.hint) == ("what", "do")


def test_an_error_about_a_file_whose_name_is_no_text_is_sent() -> None:
    name = b"d\xe9bian.cloop".decode(errors="surrogateescape")
    sent = CorruptError(f"{name} changed", hint=f"put {name} back")
    [failure] = ControlReceiver().receive(encode(Failure(3, sent)))
    assert isinstance(failure, Failure)
    assert str(failure.error) == r"d\udce9bian.cloop changed"
    assert failure.error.hint == r"put d\udce9bian.cloop back"


@pytest.mark.parametrize("letter", ["a", "\u20ac", "\U0001f4bf", "\udce9"])
def test_the_longest_error_is_sent_in_part(letter: str) -> None:
    long = letter * control.MAX_TEXT
    [failure] = ControlReceiver().receive(encode(Failure(3, FormatError(long, hint=long))))
    assert isinstance(failure, Failure)
    assert len(str(failure.error)) == len(failure.error.hint or "") >= control.MAX_TEXT // 4


def test_a_storage_error_keeps_its_errno() -> None:
    [failure] = ControlReceiver().receive(encode(Failure(3, StorageError("full", errno=28))))
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, StorageError)
    assert (failure.error.errno, failure.error.hint) == (28, None)


def test_an_error_that_others_do_not_know_is_sent_as_its_base() -> None:
    [failure] = ControlReceiver().receive(encode(Failure(3, RemoteControlError("bad"))))
    assert isinstance(failure, Failure)
    assert type(failure.error) is errors.FormatError


def test_an_error_of_an_unknown_kind_is_a_daemon_error() -> None:
    error = {"kind": "NewError", "message": "new", "hint": None}
    body = msgpack.packb({"id": 1, "ok": False, "error": error})
    [failure] = ControlReceiver().receive(len(body).to_bytes(4) + body)
    assert isinstance(failure, Failure)
    assert type(failure.error) is DaemonError
