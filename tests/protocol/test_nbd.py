"""The NBD protocol against the specification's own bytes, and against any bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd import (
    GREETING,
    INPUT_SIZE,
    MAX_INPUT_PAYLOAD,
    MAX_KEPT_PAYLOAD,
    MAX_OPTION,
    MAX_SKIPPED_OPTION,
    NbdServer,
    Reply,
    Request,
    Signal,
)
from p2pcloop.protocol.nbd_export import MAX_PAYLOAD, Agreed, Export, check_request
from p2pcloop.protocol.nbd_wire import LocalProtocolError, RemoteProtocolError

SIZE = 1 << 30
EXPORT = Export(SIZE, read_only=False)
CLIENT_FLAGS = bytes.fromhex("00000003")
GO = b"IHAVEOPT" + bytes.fromhex("00000007 00000006 00000000 0000")

# (kind, fields): events with their memory copied, so that they can be kept and compared.
Seen = tuple[object, ...]


def take_events(server: NbdServer) -> list[Seen]:
    """All events up to NEED_DATA, or to the end of the connection."""
    seen: list[Seen] = []
    while True:
        try:
            event = server.next_event()
        except RemoteProtocolError as err:
            return [*seen, ("broken", str(err))]
        if event is Signal.NEED_DATA:
            return seen
        if isinstance(event, Request):
            seen.append((*event[:-1], bytes(event.payload)))
        elif isinstance(event, Reply):
            seen.append(("reply", event.data))
        else:
            seen.append((event,))
            if event is Signal.DISCONNECT:
                return seen


def over(seen: list[Seen]) -> bool:
    return bool(seen) and seen[-1][0] in ("broken", Signal.DISCONNECT)


def feed(server: NbdServer, pieces: Iterable[bytes]) -> list[Seen]:
    """What comes of `pieces`, each received at once as far as there is room."""
    seen: list[Seen] = []
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = server.receive_buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            server.received(count)
            rest = rest[count:]
            seen += take_events(server)
            if over(seen):
                return seen
    return seen


def request(
    command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
) -> bytes:
    header = struct.pack(">IHHQQI", 0x25609513, flags, command, 0x1122334455667788, offset, length)
    return header + payload


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def info(name: bytes = b"", *wanted: int) -> bytes:
    return struct.pack(f">I{len(name)}sH{len(wanted)}H", len(name), name, len(wanted), *wanted)


def queries(name: bytes = b"", *asked: bytes) -> bytes:
    strings = b"".join(struct.pack(">I", len(query)) + query for query in asked)
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(asked)) + strings


def transmitting(export: Export = EXPORT, *options: bytes) -> NbdServer:
    server = NbdServer(export)
    assert feed(server, [CLIENT_FLAGS + b"".join(options) + GO])[-1] == (Signal.NEGOTIATED,)
    return server


STRUCTURED = option(wire.OPT_STRUCTURED_REPLY)
ALLOCATION = option(wire.OPT_SET_META_CONTEXT, queries(b"", b"base:allocation"))


def refusal(error: int) -> Seen:
    return ("reply", struct.pack(">IIQ", 0x67446698, error, 0x1122334455667788))


def test_greeting_is_fixed_newstyle() -> None:
    assert bytes.fromhex("4e42444d41474943 49484156454f5054 0003") == GREETING


def test_go_with_block_sizes() -> None:
    asked = b"IHAVEOPT" + bytes.fromhex("00000007 00000008 00000000 0001 0003")
    reply = bytes.fromhex(
        "0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0d6d"
        "0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000"
        "0003e889045565a9 00000007 00000001 00000000"
    )
    seen = feed(NbdServer(EXPORT), [CLIENT_FLAGS + asked])
    assert seen == [("reply", reply), (Signal.NEGOTIATED,)]


def test_read_only_export_tells_so_and_offers_no_changes() -> None:
    seen = feed(NbdServer(Export(SIZE, read_only=True)), [CLIENT_FLAGS + GO])
    reply = bytes.fromhex(
        "0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 050f"
        "0003e889045565a9 00000007 00000001 00000000"
    )
    assert seen == [("reply", reply), (Signal.NEGOTIATED,)]


@pytest.mark.parametrize(
    ("flags", "padding"), [("00000001", bytes(124)), ("00000003", b"")], ids=["zeroes", "no_zeroes"]
)
def test_export_name(flags: str, padding: bytes) -> None:
    seen = feed(NbdServer(EXPORT), [bytes.fromhex(flags) + option(wire.OPT_EXPORT_NAME)])
    reply = bytes.fromhex("0000000040000000 0d6d") + padding
    assert seen == [("reply", reply), (Signal.NEGOTIATED,)]


def test_list_names_the_one_empty_name() -> None:
    reply = bytes.fromhex(
        "0003e889045565a9 00000003 00000002 00000004 00000000"
        "0003e889045565a9 00000003 00000001 00000000"
    )
    assert feed(NbdServer(EXPORT), [CLIENT_FLAGS + option(wire.OPT_LIST)]) == [("reply", reply)]


NAMED = Export(SIZE, read_only=False, names=("", "debian", "@key/debian"))


def test_all_names_are_listed_and_lead_to_the_one_device() -> None:
    ((_, told),) = feed(NbdServer(NAMED), [CLIENT_FLAGS + option(wire.OPT_LIST)])
    reply = wire.option_reply
    assert told == b"".join(
        [
            reply(wire.OPT_LIST, wire.REP_SERVER, struct.pack(">I", len(name)) + name)
            for name in (b"", b"debian", b"@key/debian")
        ]
    ) + reply(wire.OPT_LIST, wire.REP_ACK)
    for name in (b"", b"debian", b"@key/debian"):
        seen = feed(NbdServer(NAMED), [CLIENT_FLAGS + option(wire.OPT_GO, info(name))])
        assert seen[-1] == (Signal.NEGOTIATED,)
        seen = feed(NbdServer(NAMED), [CLIENT_FLAGS + option(wire.OPT_EXPORT_NAME, name)])
        assert seen[-1] == (Signal.NEGOTIATED,)


@pytest.mark.parametrize("number", [wire.OPT_GO, wire.OPT_INFO])
def test_another_name_is_refused_with_those_that_there_are(number: int) -> None:
    server = NbdServer(NAMED)
    ((_, told),) = feed(server, [CLIENT_FLAGS + option(number, info(b"ubuntu"))])
    assert isinstance(told, bytes)
    assert told[12:16] == struct.pack(">I", wire.REP_ERR_UNKNOWN)
    assert b"'ubuntu'" in told
    assert b"'debian'" in told
    assert feed(server, [GO])[-1] == (Signal.NEGOTIATED,)


def test_a_context_counts_for_the_name_with_which_it_was_selected() -> None:
    selected = option(wire.OPT_SET_META_CONTEXT, queries(b"debian", b"base:allocation"))
    for name, error in ((b"debian", None), (b"", wire.EINVAL)):
        go = option(wire.OPT_GO, info(name))
        server = NbdServer(NAMED)
        assert feed(server, [CLIENT_FLAGS + STRUCTURED + selected + go])[-1] == (Signal.NEGOTIATED,)
        (told,) = feed(server, [request(wire.CMD_BLOCK_STATUS, 0, 4096)])
        assert (told[0] == "reply") == (error is not None)


TLS_EXPORT = Export(SIZE, read_only=False, tls=True)
STARTTLS = option(wire.OPT_STARTTLS)


def test_nothing_is_told_before_tls() -> None:
    server = NbdServer(TLS_EXPORT)
    asked = [wire.OPT_LIST, wire.OPT_INFO, wire.OPT_GO, wire.OPT_STRUCTURED_REPLY, 10, 99]
    seen = feed(server, [CLIENT_FLAGS, *(option(number, info()) for number in asked)])
    for number, (_, told) in zip(asked, seen, strict=True):
        assert isinstance(told, bytes)
        assert told[8:16] == struct.pack(">II", number, wire.REP_ERR_TLS_REQD)
    sent = CLIENT_FLAGS + option(wire.OPT_EXPORT_NAME)
    assert feed(NbdServer(TLS_EXPORT), [sent])[-1][0] == "broken"
    seen = feed(NbdServer(TLS_EXPORT), [CLIENT_FLAGS + option(wire.OPT_ABORT)])
    assert seen[-1] == (Signal.DISCONNECT,)


def test_after_the_handshake_the_haggling_begins_anew() -> None:
    server = NbdServer(TLS_EXPORT)
    acknowledged = ("reply", wire.option_reply(wire.OPT_STARTTLS, wire.REP_ACK))
    assert feed(server, [CLIENT_FLAGS + STARTTLS]) == [acknowledged, (Signal.START_TLS,)]
    ((_, told),) = feed(server, [STARTTLS])  # a second time
    assert isinstance(told, bytes)
    assert told[12:16] == struct.pack(">I", wire.REP_ERR_INVALID)
    assert feed(server, [GO])[-1] == (Signal.NEGOTIATED,)


def test_what_is_said_before_the_handshake_does_not_count_after_it() -> None:
    seen = feed(NbdServer(TLS_EXPORT), [CLIENT_FLAGS + STARTTLS + GO])
    assert [kind for kind, _ in seen] == ["reply", "broken"]
    ((_, told),) = feed(NbdServer(TLS_EXPORT), [CLIENT_FLAGS + option(wire.OPT_STARTTLS, b"x")])
    assert isinstance(told, bytes)
    assert told[12:16] == struct.pack(">I", wire.REP_ERR_INVALID)


def test_abort_is_acknowledged_then_over() -> None:
    seen = feed(NbdServer(EXPORT), [CLIENT_FLAGS + option(wire.OPT_ABORT, b"data to ignore")])
    reply = bytes.fromhex("0003e889045565a9 00000002 00000001 00000000")
    assert seen == [("reply", reply), (Signal.DISCONNECT,)]


@pytest.mark.parametrize(
    ("number", "data", "error"),
    [
        (wire.OPT_STARTTLS, b"", wire.REP_ERR_UNSUP),
        (wire.OPT_STRUCTURED_REPLY, b"x", wire.REP_ERR_INVALID),
        (wire.OPT_LIST_META_CONTEXT, queries(), wire.REP_ERR_INVALID),
        (wire.OPT_SET_META_CONTEXT, queries(b"", b"base:allocation"), wire.REP_ERR_INVALID),
        (0, b"", wire.REP_ERR_UNSUP),
        (0xFFFFFFFF, bytes(MAX_OPTION), wire.REP_ERR_UNSUP),
        (wire.OPT_LIST, b"x", wire.REP_ERR_INVALID),
        (wire.OPT_GO, b"", wire.REP_ERR_INVALID),
        (wire.OPT_GO, bytes(5), wire.REP_ERR_INVALID),
        (wire.OPT_GO, info() + b"x", wire.REP_ERR_INVALID),
        (wire.OPT_GO, struct.pack(">IH", 1, 0), wire.REP_ERR_INVALID),
        (wire.OPT_GO, struct.pack(">IH", 0xFFFFFFFF, 0), wire.REP_ERR_INVALID),
        (wire.OPT_INFO, struct.pack(">IH", 0, 1), wire.REP_ERR_INVALID),
        (wire.OPT_INFO, info(b"other"), wire.REP_ERR_UNKNOWN),
        (wire.OPT_GO, info(b"\xff\xfe"), wire.REP_ERR_UNKNOWN),
        (wire.OPT_GO, bytes(MAX_OPTION + 1), wire.REP_ERR_TOO_BIG),
        (99, bytes(MAX_SKIPPED_OPTION), wire.REP_ERR_TOO_BIG),
    ],
)
def test_refused_option_leaves_the_haggling_going(number: int, data: bytes, error: int) -> None:
    server = NbdServer(EXPORT)
    (seen,) = feed(server, [CLIENT_FLAGS + option(number, data)])
    assert isinstance(seen[1], bytes)
    assert seen[1][:16] == struct.pack(">QII", 0x3E889045565A9, number, error)
    assert len(seen[1]) == 20 + int.from_bytes(seen[1][16:20], "big")
    assert feed(server, [GO])[-1] == (Signal.NEGOTIATED,)


def test_info_tells_the_same_and_goes_on() -> None:
    server = NbdServer(EXPORT)
    ((_, told),) = feed(server, [CLIENT_FLAGS + option(wire.OPT_INFO, info(b"", 3, 1, 0))])
    ((_, gone), negotiated) = feed(server, [option(wire.OPT_GO, info(b"", 3, 1, 0))])
    assert isinstance(told, bytes)
    assert gone == told.replace(b"\0\0\0\6\0\0\0", b"\0\0\0\7\0\0\0")
    assert negotiated == (Signal.NEGOTIATED,)


@pytest.mark.parametrize(
    "sent",
    [
        bytes.fromhex("00000004"),
        bytes.fromhex("80000003"),
        CLIENT_FLAGS + b"IHAVEOPX" + bytes(8),
        CLIENT_FLAGS + option(wire.OPT_EXPORT_NAME, b"other"),
        CLIENT_FLAGS + b"IHAVEOPT" + struct.pack(">II", wire.OPT_EXPORT_NAME, MAX_OPTION + 1),
        CLIENT_FLAGS + b"IHAVEOPT" + struct.pack(">II", 99, MAX_SKIPPED_OPTION + 1),
        CLIENT_FLAGS + GO + b"\x25\x60\x95\x14" + bytes(24),
        CLIENT_FLAGS + GO + request(wire.CMD_WRITE, 0, MAX_PAYLOAD + 512),
    ],
)
def test_client_that_breaks_the_protocol(sent: bytes) -> None:
    server = NbdServer(EXPORT)
    assert feed(server, [sent])[-1][0] == "broken"
    with pytest.raises(LocalProtocolError):
        server.next_event()
    with pytest.raises(LocalProtocolError):
        server.receive_buffer()


def test_golden_requests() -> None:
    sent = bytes.fromhex(
        "25609513 0000 0000 1122334455667788 0000000000001000 00000200"  # READ
        "25609513 0001 0003 1122334455667788 0000000000000000 00000000"  # FLUSH
        "25609513 0001 0004 1122334455667788 000000003ffff000 00001000"  # TRIM
        "25609513 0003 0006 1122334455667788 0000000000000000 40000000"  # WRITE_ZEROES
        "25609513 0000 0005 1122334455667788 0000000000001000 80000000"  # CACHE
        "25609513 0008 0007 1122334455667788 0000000000001000 00001000"  # BLOCK_STATUS
        "25609513 0001 0001 1122334455667788 0000000000000200 00000200"  # WRITE
    )
    cookie = 0x1122334455667788
    export = Export(1 << 32, read_only=False)
    assert feed(
        transmitting(export, STRUCTURED, ALLOCATION), [sent + b"d" * 512 + request(wire.CMD_DISC)]
    ) == [
        (wire.CMD_READ, 0, cookie, 4096, 512, b""),
        (wire.CMD_FLUSH, 1, cookie, 0, 0, b""),
        (wire.CMD_TRIM, 1, cookie, SIZE - 4096, 4096, b""),
        (wire.CMD_WRITE_ZEROES, 3, cookie, 0, SIZE, b""),
        (wire.CMD_CACHE, 0, cookie, 4096, 1 << 31, b""),
        (wire.CMD_BLOCK_STATUS, 8, cookie, 4096, 4096, b""),
        (wire.CMD_WRITE, 1, cookie, 512, 512, b"d" * 512),
        (Signal.DISCONNECT,),
    ]


def test_golden_simple_replies() -> None:
    replies = transmitting().replies
    cookie = 0x1122334455667788
    assert replies.error(cookie, wire.EIO, "x") == bytes.fromhex(
        "67446698 00000005 1122334455667788"
    )
    good = bytes.fromhex("67446698 00000000 1122334455667788")
    assert replies.done(cookie) == replies.data_header(cookie, 4096, 512) == good
    assert replies.data_header_size == len(good)


def test_golden_structured_replies() -> None:
    replies = transmitting(EXPORT, STRUCTURED).replies
    cookie = 0x1122334455667788
    assert replies.done(cookie) == bytes.fromhex("67446698 00000000 1122334455667788")
    data = bytes.fromhex("668e33ef 0001 0001 1122334455667788 00000208 0000000000001000")
    assert replies.data_header(cookie, 4096, 512) == data
    assert replies.data_header_size == len(data)
    assert replies.data_header(cookie, 4096, 512, last=False)[5] == 0
    assert replies.hole(cookie, 4096, 512, last=True) == bytes.fromhex(
        "668e33ef 0001 0002 1122334455667788 0000000c 0000000000001000 00000200"
    )
    assert replies.hole(cookie, 4096, 512, last=False)[5] == 0
    assert replies.block_status(cookie, 1, [(4096, 0), (8192, 3)]) == bytes.fromhex(
        "668e33ef 0001 0005 1122334455667788 00000014 00000001 00001000 00000000 00002000 00000003"
    )
    assert replies.error(cookie, wire.EIO, "é") == bytes.fromhex(
        "668e33ef 0001 8001 1122334455667788 00000008 00000005 0002 c3a9"
    )
    long = replies.error(cookie, wire.EIO, "é" * 5000)
    assert len(long[26:].decode()) == 1024


def test_a_refused_read_is_told_in_the_way_that_was_agreed_on() -> None:
    server = transmitting(EXPORT, STRUCTURED)
    ((_, told),) = feed(server, [request(wire.CMD_READ, SIZE, 512)])
    assert isinstance(told, bytes)
    assert told[:8] == bytes.fromhex("668e33ef 0001 8001")
    assert told[20:24] == bytes.fromhex("00000016")
    assert feed(transmitting(), [request(wire.CMD_READ, SIZE, 512)]) == [refusal(wire.EINVAL)]


def test_structured_replies_come_with_unfragmented_reads() -> None:
    asked = option(wire.OPT_GO, info())
    seen = feed(NbdServer(EXPORT), [CLIENT_FLAGS + STRUCTURED + asked])
    assert seen[0] == ("reply", bytes.fromhex("0003e889045565a9 00000008 00000001 00000000"))
    flags = wire.SEND_DF | 0x0D6D
    assert isinstance(seen[1][1], bytes)
    assert int.from_bytes(seen[1][1][30:32], "big") == flags


_ALLOCATION_TOLD = bytes.fromhex("0003e889045565a9 0000000a 00000004 00000013 00000001") + (
    b"base:allocation"
)
_ACK = bytes.fromhex("0003e889045565a9 0000000a 00000001 00000000")


def test_metadata_contexts_are_listed_and_selected() -> None:
    for asked in (queries(), queries(b"", b"base:"), queries(b"", b"x:y", b"base:allocation")):
        server = NbdServer(EXPORT)
        sent = option(wire.OPT_LIST_META_CONTEXT, asked)
        told = (_ALLOCATION_TOLD[:20] + bytes(4) + b"base:allocation" + _ACK).replace(
            b"\0\0\0\x0a", b"\0\0\0\x09"
        )
        assert feed(server, [CLIENT_FLAGS + STRUCTURED + sent])[-1] == ("reply", told)
    sent = option(wire.OPT_SET_META_CONTEXT, queries(b"", b"x:y", *[b"base:allocation"] * 2))
    seen = feed(NbdServer(EXPORT), [CLIENT_FLAGS + STRUCTURED + sent])
    assert seen[-1] == ("reply", _ALLOCATION_TOLD + _ACK)


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (queries(), wire.REP_ACK),
        (queries(b"", b"base:"), wire.REP_ACK),
        (queries(b"", b"base:dirty", b"qemu:dirty-bitmap:x", b"nonsense"), wire.REP_ACK),
        (queries(b"other", b"base:allocation"), wire.REP_ERR_UNKNOWN),
        (b"", wire.REP_ERR_INVALID),
        (queries()[:-1], wire.REP_ERR_INVALID),
        (queries() + b"x", wire.REP_ERR_INVALID),
        (struct.pack(">II", 0, 1), wire.REP_ERR_INVALID),
        (struct.pack(">III", 0, 0xFFFFFFFF, 0), wire.REP_ERR_INVALID),
        (struct.pack(">III", 0, 1, 16) + b"base:allocation", wire.REP_ERR_INVALID),
        (struct.pack(">I", 0xFFFFFFFF) + bytes(8), wire.REP_ERR_INVALID),
    ],
)
def test_what_selects_nothing_drops_what_was_selected(data: bytes, reply: int) -> None:
    sent = STRUCTURED + ALLOCATION + option(wire.OPT_SET_META_CONTEXT, data)
    server = NbdServer(EXPORT)
    (_, _, (_, told)) = feed(server, [CLIENT_FLAGS + sent])
    assert isinstance(told, bytes)
    assert int.from_bytes(told[12:16], "big") == reply
    feed(server, [GO])
    ((kind, refused),) = feed(server, [request(wire.CMD_BLOCK_STATUS, 0, 4096)])
    assert kind == "reply"
    assert isinstance(refused, bytes)
    assert refused[20:24] == bytes.fromhex("00000016")


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "error"),
    [
        (wire.CMD_READ, 0, 0, MAX_PAYLOAD, 0),
        (wire.CMD_READ, 0, 0, MAX_PAYLOAD + 512, wire.EINVAL),
        (wire.CMD_READ, wire.CMD_FLAG_FUA, SIZE - 512, 512, 0),
        (wire.CMD_READ, 0, SIZE - 512, 1024, wire.EINVAL),
        (wire.CMD_READ, 0, (1 << 64) - 512, 512, wire.EINVAL),
        (wire.CMD_READ, 0, 0, 0, wire.EINVAL),
        (wire.CMD_READ, 0, 1, 512, 0),
        (wire.CMD_READ, 0, 0, 511, 0),
        (wire.CMD_READ, 0, SIZE - 1, 1, 0),
        (wire.CMD_READ, 0, SIZE - 1, 2, wire.EINVAL),
        (wire.CMD_WRITE, 0, 7, 3, 0),
        (wire.CMD_WRITE, 0, SIZE - 1, 2, wire.ENOSPC),
        (wire.CMD_TRIM, 0, 1, 1, 0),
        (wire.CMD_WRITE_ZEROES, 0, 1, 1, 0),
        (wire.CMD_READ, wire.CMD_FLAG_NO_HOLE, 0, 512, wire.EINVAL),
        (wire.CMD_READ, 1 << 5, 0, 512, wire.EINVAL),
        (wire.CMD_READ, wire.CMD_FLAG_DF, 0, MAX_PAYLOAD, 0),
        (wire.CMD_READ, wire.CMD_FLAG_DF, 0, MAX_PAYLOAD + 512, wire.EOVERFLOW),
        (wire.CMD_WRITE, 0, SIZE, 512, wire.ENOSPC),
        (wire.CMD_WRITE, 1 << 15, 0, 512, wire.EINVAL),
        (wire.CMD_WRITE, 0, 0, 0, wire.EINVAL),
        (wire.CMD_WRITE_ZEROES, 0, SIZE - 512, 1024, wire.ENOSPC),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_DF, 0, 512, wire.EINVAL),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_FAST_ZERO, 0, 4096, 0),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_FAST_ZERO, 512, 7680, 0),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_FAST_ZERO, 512, 7168, wire.ENOTSUP),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_FAST_ZERO, 0, 512, wire.ENOTSUP),
        (wire.CMD_WRITE_ZEROES, 0x12, 0, 4096, wire.ENOTSUP),
        (wire.CMD_TRIM, 0, SIZE - 512, 1024, wire.EINVAL),
        (wire.CMD_TRIM, 0, 0, 0, wire.EINVAL),
        (wire.CMD_FLUSH, 0, 0, 512, wire.EINVAL),
        (wire.CMD_FLUSH, 0, 512, 0, wire.EINVAL),
        (wire.CMD_CACHE, 0, 0, SIZE, 0),
        (wire.CMD_CACHE, wire.CMD_FLAG_FUA, 0, 512, 0),
        (wire.CMD_CACHE, 1 << 1, 0, 512, wire.EINVAL),
        (wire.CMD_CACHE, 0, 512, SIZE, wire.EINVAL),
        (wire.CMD_BLOCK_STATUS, wire.CMD_FLAG_REQ_ONE, 0, SIZE, 0),
        (wire.CMD_BLOCK_STATUS, wire.CMD_FLAG_DF, 0, 512, wire.EINVAL),
        (wire.CMD_BLOCK_STATUS, 0, 0, 0, wire.EINVAL),
        (wire.CMD_BLOCK_STATUS, 0, 0, SIZE + 512, wire.EINVAL),
        (8, 0, 0, 512, wire.EINVAL),
        (0xFFFF, 0, 0, 512, wire.EINVAL),
    ],
)
def test_check_request(command: int, flags: int, offset: int, length: int, error: int) -> None:
    agreed = Agreed(structured=True, block_status=True)
    refused = check_request(EXPORT, agreed, command, flags, offset, length)
    assert (refused.error if refused else 0) == error


def test_what_was_not_agreed_on_is_refused() -> None:
    for command, flags in ((wire.CMD_READ, wire.CMD_FLAG_DF), (wire.CMD_BLOCK_STATUS, 0)):
        refused = check_request(EXPORT, Agreed(), command, flags, 0, 512)
        assert refused is not None
        assert refused.error == wire.EINVAL


@pytest.mark.parametrize("command", [wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES])
def test_read_only_export_is_not_changed(command: int) -> None:
    export = Export(SIZE, read_only=True)
    payload = bytes(512) if command == wire.CMD_WRITE else b""
    sent = request(command, 0, 512, payload=payload) + request(wire.CMD_READ, 0, 512)
    refused, read = feed(transmitting(export), [sent])
    assert refused == refusal(wire.EPERM)
    assert read[0] == wire.CMD_READ


@pytest.mark.parametrize("length", [512, MAX_INPUT_PAYLOAD, 3 * INPUT_SIZE, MAX_PAYLOAD])
def test_payload_of_a_refused_write_is_passed_over(length: int) -> None:
    sent = request(wire.CMD_WRITE, SIZE, length, payload=request(wire.CMD_TRIM) * (length // 28))
    sent += bytes(length - len(sent) + 28) + request(wire.CMD_READ, 0, 512)
    refused, read = feed(transmitting(), [sent])
    assert refused == refusal(wire.ENOSPC)
    assert read[0] == wire.CMD_READ


@pytest.mark.parametrize(
    "length",
    [
        512,
        MAX_INPUT_PAYLOAD - 512,
        MAX_INPUT_PAYLOAD,
        MAX_INPUT_PAYLOAD + 512,
        INPUT_SIZE + 512,
        MAX_KEPT_PAYLOAD,
        MAX_KEPT_PAYLOAD + 512,
    ],
)
def test_payloads_arrive_whole(length: int) -> None:
    payloads = [bytes([n]) * length for n in (1, 2, 3)]
    sent = b"".join(request(wire.CMD_WRITE, 0, length, payload=data) for data in payloads)
    seen = feed(transmitting(), [sent])
    assert [event[5] for event in seen] == payloads


def test_large_payload_is_received_where_it_stays() -> None:
    server = transmitting()
    length = 1 << 20
    feed(server, [request(wire.CMD_WRITE, 0, length)])
    room = server.receive_buffer()
    assert len(room) == length
    room[:] = b"x" * length
    server.received(length)
    event = server.next_event()
    assert isinstance(event, Request)
    assert event.payload.obj is room.obj


@pytest.mark.parametrize(
    ("length", "kept"), [(MAX_KEPT_PAYLOAD, MAX_KEPT_PAYLOAD), (MAX_KEPT_PAYLOAD + 512, 0)]
)
def test_only_a_small_payload_buffer_is_kept(length: int, kept: int) -> None:
    server = transmitting()
    (seen,) = feed(server, [request(wire.CMD_WRITE, 0, length, payload=bytes(length))])
    assert seen[4] == length
    assert len(server._payload) == kept


def test_wrong_use_is_a_local_error() -> None:
    server = NbdServer(EXPORT)
    for count in (0, -1, INPUT_SIZE + 1):
        with pytest.raises(LocalProtocolError):
            server.received(count)


messages = st.one_of(
    st.builds(option, st.integers(0, 12), st.binary(max_size=30)),
    st.builds(
        lambda number, name, asked: option(number, queries(name, *asked)),
        st.sampled_from([wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT]),
        st.sampled_from([b"", b"name"]),
        st.lists(st.sampled_from([b"", b"base:", b"base:allocation"]), max_size=3),
    ),
    st.builds(
        lambda number, name, wanted: option(number, info(name, *wanted)),
        st.sampled_from([wire.OPT_INFO, wire.OPT_GO]),
        st.sampled_from([b"", b"name"]),
        st.lists(st.integers(0, 4), max_size=4),
    ),
    st.builds(
        lambda command, flags, offset, length: request(
            command,
            offset * 512,
            length * 256,
            flags=flags,
            payload=bytes(length * 256) if command == wire.CMD_WRITE else b"",
        ),
        st.integers(0, 8),
        st.integers(0, 31),
        st.sampled_from([0, 1, 8, SIZE // 512 - 1, SIZE // 512]),
        st.integers(0, 8),
    ),
    st.binary(max_size=40),
)
conversations = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda start, parts: start + b"".join(parts),
        st.sampled_from(
            [
                CLIENT_FLAGS,
                CLIENT_FLAGS + STRUCTURED,
                CLIENT_FLAGS + GO,
                CLIENT_FLAGS + STRUCTURED + ALLOCATION + GO,
            ]
        ),
        st.lists(messages, max_size=8),
    ),
)


@settings(max_examples=150, deadline=None)
@given(sent=conversations, read_only=st.booleans())
def test_any_bytes_whole_and_byte_by_byte(sent: bytes, read_only: bool) -> None:
    """Any bytes give events or a remote error, the same however they are cut."""
    export = Export(SIZE, read_only)
    whole = feed(NbdServer(export), [sent])
    assert feed(NbdServer(export), (sent[n : n + 1] for n in range(len(sent)))) == whole


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(
        st.sampled_from([512, 4096, 65536, MAX_INPUT_PAYLOAD, MAX_INPUT_PAYLOAD + 512, 300 << 10]),
        min_size=1,
        max_size=6,
    ),
    piece=st.integers(1000, 400_000),
)
def test_writes_are_the_same_however_they_are_cut(lengths: list[int], piece: int) -> None:
    payloads = [bytes([n + 1]) * length for n, length in enumerate(lengths)]
    sent = b"".join(
        request(wire.CMD_WRITE, 0, len(payload), payload=payload) for payload in payloads
    )
    seen = feed(transmitting(), (sent[n : n + piece] for n in range(0, len(sent), piece)))
    assert [event[5] for event in seen] == payloads


def test_an_export_may_have_smaller_requests() -> None:
    small = Export(SIZE, read_only=False, max_payload=8192)
    assert check_request(small, Agreed(), wire.CMD_READ, 0, 0, 8704) is not None
    assert check_request(small, Agreed(), wire.CMD_READ, 0, 0, 8192) is None
    seen = feed(NbdServer(small), [CLIENT_FLAGS + GO + request(wire.CMD_WRITE, 0, 8704)])
    assert seen[-1][0] == "broken"
