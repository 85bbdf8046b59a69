"""vhost-user: framing whole and byte by byte, negotiation, the life of descriptors, refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.protocol.vhost_session import F_PROTOCOL_FEATURES, OFFERED, ProtocolFeature, Session
from p2pcloop.protocol.vhost_state import MemoryChanged, Region, RingChanged, Vring
from p2pcloop.protocol.vhost_user import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_REGIONS,
    Code,
    Message,
    MessageReader,
    ProtocolError,
    RefusedError,
)

FEATURES = F_PROTOCOL_FEATURES | 1 << 32


def frame(code: int, payload: bytes = b"", flags: int = 1) -> bytes:
    return struct.pack("<III", code, flags, len(payload)) + payload


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def state(index: int, value: int) -> bytes:
    return struct.pack("<II", index, value)


def region(guest: int, size: int, user: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<QQQQ", guest, size, user, offset)


def memory_table(*regions: bytes, count: int | None = None) -> bytes:
    return struct.pack("<II", len(regions) if count is None else count, 0) + b"".join(regions)


def message(code: int, payload: bytes = b"", *fds: int, needs_reply: bool = False) -> Message:
    return Message(code, needs_reply, payload, fds)


@pytest.fixture
def session() -> Session:
    """A session as it is once features are negotiated."""
    session = Session(FEATURES, bytes(range(60)), (Vring(), Vring()))
    session.handle(message(Code.SET_FEATURES, u64(FEATURES)))
    session.handle(message(Code.SET_PROTOCOL_FEATURES, u64(OFFERED)))
    return session


def ask(session: Session, code: Code, payload: bytes = b"") -> bytes:
    """Ask a question and return the payload of the answer, its header checked."""
    question = message(code, payload)
    session.handle(question)
    answer = session.reply(question)
    assert answer is not None
    assert struct.unpack_from("<III", answer) == (code, 1 | 4, len(answer) - HEADER_SIZE)
    return answer[HEADER_SIZE:]


def test_message_with_descriptors() -> None:
    reader = MessageReader()
    assert reader.wanted == HEADER_SIZE
    data = frame(Code.SET_VRING_KICK, u64(0), flags=1 | 8)
    assert reader.receive(data[:HEADER_SIZE], [7]) is None
    assert (reader.wanted, reader.fds) == (8, (7,))
    assert reader.receive(data[HEADER_SIZE:], [8]) == Message(12, True, u64(0), (7, 8))
    assert (reader.wanted, reader.fds) == (HEADER_SIZE, ())


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 99),
            st.booleans(),
            st.binary(max_size=40),
            st.lists(st.integers(3, 99), max_size=MAX_REGIONS),
        ),
        max_size=4,
    )
)
def test_byte_by_byte_is_as_whole(parts: list[tuple[int, bool, bytes, list[int]]]) -> None:
    reader = MessageReader()
    messages = []
    for code, needs_reply, payload, fds in parts:
        coming = list(fds)
        for byte in frame(code, payload, flags=9 if needs_reply else 1):
            complete = reader.receive(bytes([byte]), coming)
            coming = []
            if complete is not None:
                messages.append(complete)
    assert messages == [Message(code, needs, load, tuple(fds)) for code, needs, load, fds in parts]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.builds(frame, st.sampled_from(Code), st.binary(max_size=20))).map(b"".join),
    st.lists(st.integers(3, 99), max_size=4),
)
def test_any_bytes_are_messages_or_the_error(data: bytes, fds: list[int]) -> None:
    """Whatever comes: messages that are handled or refused, or ProtocolError; and no fd is lost."""
    reader, session = MessageReader(), Session(FEATURES, bytes(60), (Vring(),))
    fds = sorted(set(fds))
    coming = list(fds)
    try:
        while data and (piece := data[: reader.wanted]):
            data = data[len(piece) :]
            now, coming = coming, []
            received = reader.receive(piece, now)
            if received is not None:
                _obey(session, received)
    except ProtocolError:
        pass
    assert sorted([*session.take_all(), *reader.fds, *coming]) == fds


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Code),
            st.binary(max_size=12) | st.builds(state, st.integers(0, 2), st.integers(0, 2)),
            st.integers(0, 2),
        ),
        max_size=30,
    )
)
def test_any_messages_are_handled_or_refused(parts: list[tuple[Code, bytes, int]]) -> None:
    session = Session(FEATURES, bytes(60), (Vring(), Vring()))
    given_out, closed = 0, []
    for code, payload, count in parts:
        fds = tuple(range(given_out, given_out + count))
        given_out += count
        try:
            _obey(session, message(code, payload, *fds))
        except ProtocolError:
            break
        closed += session.take_unused()
    assert sorted(closed + session.take_all()) == list(range(given_out))


def _obey(session: Session, received: Message) -> None:
    refused = False
    try:
        session.handle(received)
    except RefusedError:
        refused = True
    session.reply(received, refused=refused)


@pytest.mark.parametrize(
    "data",
    [
        frame(1, flags=0),
        frame(1, flags=2),
        frame(1, flags=1 | 4),
        struct.pack("<III", 1, 1, MAX_PAYLOAD + 1),
        struct.pack("<III", 1, 1, 0xFFFFFFFF),
    ],
)
def test_no_message(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        MessageReader().receive(data)


def test_too_many_descriptors() -> None:
    reader = MessageReader()
    with pytest.raises(ProtocolError):
        reader.receive(b"\1", range(MAX_REGIONS + 1))
    assert len(reader.fds) == MAX_REGIONS + 1


def test_questions(session: Session) -> None:
    assert ask(session, Code.GET_FEATURES) == u64(FEATURES)
    wanted = ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ
    assert ask(session, Code.GET_PROTOCOL_FEATURES) == u64(wanted | ProtocolFeature.MQ)
    assert ask(session, Code.GET_QUEUE_NUM) == u64(2)
    asked = struct.pack("<III", 58, 4, 0)
    assert ask(session, Code.GET_CONFIG, asked + bytes(4)) == asked + bytes([58, 59, 0, 0])


@pytest.mark.parametrize(
    ("offset", "size", "sent"), [(0, 257, 257), (256, 1, 1), (0, 0, 0), (0, 4, 3)]
)
def test_configuration_beyond_its_end(session: Session, offset: int, size: int, sent: int) -> None:
    question = message(Code.GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(sent))
    with pytest.raises(RefusedError):
        session.handle(question)
    reply = session.reply(question, refused=True)
    assert reply == struct.pack("<III", Code.GET_CONFIG, 1 | 4, 0)  # of no length: an error


def test_acknowledgement(session: Session) -> None:
    owner = message(Code.SET_OWNER, needs_reply=True)
    session.handle(owner)
    assert session.reply(owner) == frame(Code.SET_OWNER, u64(0), flags=1 | 4)
    assert session.reply(owner, refused=True) == frame(Code.SET_OWNER, u64(1), flags=1 | 4)
    quiet = message(Code.SET_OWNER)
    assert session.reply(quiet) is None
    with pytest.raises(ProtocolError):
        session.reply(quiet, refused=True)


def test_acknowledgement_that_was_not_negotiated() -> None:
    session = Session(FEATURES, b"", (Vring(),))
    assert session.reply(message(Code.SET_OWNER, needs_reply=True)) is None


def test_ring_is_laid_out_started_and_stopped(session: Session) -> None:
    for code, value in ((Code.SET_VRING_NUM, 256), (Code.SET_VRING_BASE, 5)):
        assert session.handle(message(code, state(1, value))) is None
    addresses = struct.pack("<IIQQQQ", 1, 0, 0x1000, 0x3000, 0x2000, (1 << 64) - 1)
    session.handle(message(Code.SET_VRING_ADDR, addresses))
    assert session.handle(message(Code.SET_VRING_CALL, u64(1), 11)) is None
    assert session.handle(message(Code.SET_VRING_KICK, u64(1), 12)) == RingChanged(1)
    assert session.vrings[1].enabled is False
    assert session.handle(message(Code.SET_VRING_ENABLE, state(1, 1))) == RingChanged(1)
    layout = (0x1000, 0x3000, 0x2000)
    assert session.vrings[1] == Vring(256, 5, layout, started=True, enabled=True, kick=12, call=11)
    for code in (Code.SET_VRING_NUM, Code.SET_VRING_BASE):
        with pytest.raises(RefusedError):
            session.handle(message(code, state(1, 8)))
    with pytest.raises(RefusedError):
        session.handle(message(Code.SET_VRING_ADDR, addresses))
    stop = message(Code.GET_VRING_BASE, state(1, 0))
    assert session.handle(stop) == RingChanged(1)
    assert session.vrings[1].started is False
    session.vrings[1].base = 77
    assert session.reply(stop) == frame(Code.GET_VRING_BASE, state(1, 77), flags=1 | 4)
    session.handle(message(Code.SET_VRING_KICK, u64(1), 13))
    assert session.vrings[1].running
    assert session.take_unused() == [12]
    assert sorted(session.take_all()) == [11, 13]


def test_rings_are_enabled_where_there_are_no_protocol_features() -> None:
    session = Session(FEATURES, b"", (Vring(),))
    session.handle(message(Code.SET_FEATURES, u64(1 << 32)))
    session.handle(message(Code.SET_VRING_KICK, u64(0), 9))
    assert session.vrings[0].running


def test_descriptors_that_are_replaced_are_unused(session: Session) -> None:
    for code in (Code.SET_VRING_CALL, Code.SET_VRING_ERR):
        session.handle(message(code, u64(0), 20))
        session.handle(message(code, u64(0), 21))
        session.handle(message(code, u64(0x100)))
        assert session.take_unused() == [20, 21]
    session.handle(message(Code.SET_BACKEND_REQ_FD, b"", 22))
    assert session.take_unused() == []
    assert session.take_all() == [22]


def test_memory_table(session: Session) -> None:
    table = memory_table(region(0, 64, 0x1000, 0x2000), region(64, 32, 0x5000))
    assert session.handle(message(Code.SET_MEM_TABLE, table, 30, 31)) == MemoryChanged()
    assert session.regions == (Region(0, 64, 0x1000, 0x2000, 30), Region(64, 32, 0x5000, 0, 31))
    # UML sends room for two regions and says that there is one.
    table = memory_table(region(0, 64), region(0, 0), count=1)
    session.handle(message(Code.SET_MEM_TABLE, table, 32))
    assert sorted(session.take_unused()) == [30, 31]
    assert session.take_all() == [32]


@pytest.mark.parametrize(
    ("code", "payload", "fds"),
    [
        (Code.SET_FEATURES, u64(1 << 34), 0),
        (Code.SET_FEATURES, b"\0" * 7, 0),
        (Code.SET_PROTOCOL_FEATURES, u64(1 << 12), 0),
        (Code.SET_MEM_TABLE, b"", 0),
        (Code.SET_MEM_TABLE, memory_table(), 0),
        (Code.SET_MEM_TABLE, memory_table(region(0, 64)), 0),
        (Code.SET_MEM_TABLE, memory_table(region(0, 64)), 2),
        (Code.SET_MEM_TABLE, memory_table(region(0, 64), count=2), 2),
        (Code.SET_MEM_TABLE, memory_table(region(0, 0)), 1),
        (Code.SET_MEM_TABLE, memory_table(region(0, 64), region(63, 64)), 2),
        (Code.SET_MEM_TABLE, memory_table(region((1 << 64) - 64, 64)), 1),
        (Code.SET_MEM_TABLE, memory_table(region(0, 64, offset=(1 << 63) - 1)), 1),
        (Code.SET_MEM_TABLE, memory_table(*[region(n, 1) for n in range(9)]), 8),
        (Code.SET_VRING_NUM, state(2, 8), 0),
        (Code.SET_VRING_BASE, state(0, 1 << 16), 0),
        (Code.SET_VRING_KICK, u64(0), 0),
        (Code.SET_VRING_KICK, u64(0), 2),
        (Code.SET_VRING_KICK, u64(0x100), 0),
        (Code.SET_VRING_KICK, u64(2), 1),
        (Code.SET_VRING_CALL, u64(0), 0),
        (Code.SET_VRING_ENABLE, state(0xFFFFFFFF, 1), 0),
        (6, b"", 1),
        (99, b"", 1),
    ],
)
def test_refused_and_nothing_changed(session: Session, code: int, payload: bytes, fds: int) -> None:
    before = repr(session)
    given_fds = list(range(50, 50 + fds))
    with pytest.raises(RefusedError):
        session.handle(message(code, payload, *given_fds))
    assert session.take_unused() == given_fds
    assert repr(session) == before
