"""The answers to the options of an NBD client, before its requests.

Each export has one metadata context, `base:allocation`. Source: doc/proto.md of
NetworkBlockDevice/nbd ("Option types", "Metadata querying", "TLS support").
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd_export import (
    Agreed,
    Exports,
    quoted,
    transmission_flags,
)
from p2pcloop.protocol.nbd_wire import RemoteProtocolError
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

ALLOCATION: Final = b"base:allocation"
ALLOCATION_ID: Final = 1
"""The id of `base:allocation` when it is selected; in a list the id is reserved and 0."""

_LENGTH = struct.Struct(">I")
_TLS_FIRST: Final = b"this server asks for TLS (NBD_OPT_STARTTLS)"


class Then(enum.Enum):
    """The next step of the negotiation after an option."""

    NEXT_OPTION = enum.auto()
    TLS = enum.auto()
    TRANSMISSION = enum.auto()
    END = enum.auto()


def answer_option(exports: Exports, agreed: Agreed, option: int, data: bytes) -> tuple[bytes, Then]:
    """The bytes that answer an option, and the next step; changes `agreed`.

    Raises:
        RemoteProtocolError: EXPORT_NAME with an unknown name, for which there is no answer.
    """
    if option == wire.OPT_ABORT:
        return wire.option_reply(option, wire.REP_ACK), Then.END
    if exports.tls and (option == wire.OPT_STARTTLS or not agreed.tls):
        return _insist_on_tls(agreed, option, data)
    if option == wire.OPT_EXPORT_NAME:
        return _choose_export(exports, agreed, data), Then.TRANSMISSION
    if option in (wire.OPT_INFO, wire.OPT_GO):
        return _describe_export(exports, agreed, option, data)
    if option in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
        return _answer_contexts(exports, agreed, option, data), Then.NEXT_OPTION
    if option not in (wire.OPT_LIST, wire.OPT_STRUCTURED_REPLY):
        return wire.option_reply(option, wire.REP_ERR_UNSUP), Then.NEXT_OPTION
    if data:
        return wire.option_reply(option, wire.REP_ERR_INVALID), Then.NEXT_OPTION
    if option == wire.OPT_STRUCTURED_REPLY:
        agreed.structured = True
        return wire.option_reply(option, wire.REP_ACK), Then.NEXT_OPTION
    names = [name.encode() for name in exports.names]
    told = b"".join(
        wire.option_reply(option, wire.REP_SERVER, _LENGTH.pack(len(name)) + name) for name in names
    )
    return told + wire.option_reply(option, wire.REP_ACK), Then.NEXT_OPTION


def chosen_export(exports: Exports, agreed: Agreed, option: int, data: bytes) -> bytes | None:
    """The name that an option asks to be served, if the answer to it would give that export."""
    if exports.tls and not agreed.tls:
        return None
    if option == wire.OPT_EXPORT_NAME:
        name = data
    elif option == wire.OPT_GO and (parsed := _parse_info(data)) is not None:
        name = parsed[0]
    else:
        return None
    return None if isinstance(exports.find(name), str) else name


def _insist_on_tls(agreed: Agreed, option: int, data: bytes) -> tuple[bytes, Then]:
    if option == wire.OPT_EXPORT_NAME:
        raise RemoteProtocolError("the client asked for an export before TLS was started")
    if option != wire.OPT_STARTTLS:
        return wire.option_reply(option, wire.REP_ERR_TLS_REQD, _TLS_FIRST), Then.NEXT_OPTION
    if data or agreed.tls:
        return wire.option_reply(option, wire.REP_ERR_INVALID), Then.NEXT_OPTION
    agreed.tls = True
    return wire.option_reply(option, wire.REP_ACK), Then.TLS


def _choose_export(exports: Exports, agreed: Agreed, name: bytes) -> bytes:
    export = exports.find(name)
    if isinstance(export, str):
        raise RemoteProtocolError(
            tr("the client asked for export {name}: {export}", name=quoted(name), export=export)
        )
    agreed.export, agreed.name = export, name
    agreed.block_status = agreed.block_status and name == agreed.context_name
    chosen = wire.EXPORT_NAME_REPLY.pack(export.size, transmission_flags(export, agreed))
    return chosen if agreed.no_zeroes else chosen + wire.EXPORT_NAME_PADDING


def _describe_export(
    exports: Exports, agreed: Agreed, option: int, data: bytes
) -> tuple[bytes, Then]:
    parsed = _parse_info(data)
    if parsed is None:
        return wire.option_reply(option, wire.REP_ERR_INVALID), Then.NEXT_OPTION
    name, wanted = parsed
    export = exports.find(name)
    if isinstance(export, str):
        return _unknown_export(option, export), Then.NEXT_OPTION
    if option == wire.OPT_GO:
        agreed.export, agreed.name = export, name
        agreed.block_status = agreed.block_status and name == agreed.context_name
    flags = transmission_flags(export, agreed)
    info = wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, export.size, flags)
    replies = wire.option_reply(option, wire.REP_INFO, info)
    if wire.INFO_BLOCK_SIZE in wanted:
        largest = export.max_payload
        sizes = wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, 1, BLOCK_SIZE, largest)
        replies += wire.option_reply(option, wire.REP_INFO, sizes)
    then = Then.TRANSMISSION if option == wire.OPT_GO else Then.NEXT_OPTION
    return replies + wire.option_reply(option, wire.REP_ACK), then


def _parse_info(data: bytes) -> tuple[bytes, tuple[int, ...]] | None:
    """Name and information requests of INFO and GO; None if the lengths do not add up."""
    if len(data) < 6:
        return None
    name_end = 4 + int.from_bytes(data[:4], "big")
    if name_end > len(data) - 2:
        return None
    count = int.from_bytes(data[name_end : name_end + 2], "big")
    if len(data) != name_end + 2 + 2 * count:
        return None
    return data[4:name_end], struct.unpack_from(f">{count}H", data, name_end + 2)


def _answer_contexts(exports: Exports, agreed: Agreed, option: int, data: bytes) -> bytes:
    """LIST_META_CONTEXT lists the contexts; SET_META_CONTEXT replaces the selection."""
    selects = option == wire.OPT_SET_META_CONTEXT
    if selects:
        agreed.block_status = False  # a query that fails selects nothing
    parsed = _parse_queries(data) if agreed.structured else None
    if parsed is None:
        return wire.option_reply(option, wire.REP_ERR_INVALID)
    name, queries = parsed
    if isinstance(refusal := exports.find(name), str):
        return _unknown_export(option, refusal)
    if selects:
        agreed.block_status = found = ALLOCATION in queries
        agreed.context_name = name
    else:
        found = not queries or b"base:" in queries or ALLOCATION in queries
    ack = wire.option_reply(option, wire.REP_ACK)
    if not found:
        return ack
    told = wire.CONTEXT_ID.pack(ALLOCATION_ID if selects else 0) + ALLOCATION
    return wire.option_reply(option, wire.REP_META_CONTEXT, told) + ack


def _parse_queries(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """Name of the export and queries; None if the lengths do not add up."""
    queries = []
    try:
        name, at = _parse_string(data, 0)
        (count,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        for _ in range(count):
            query, at = _parse_string(data, at)
            queries.append(query)
    except struct.error:
        return None
    return (name, queries) if at == len(data) else None


def _parse_string(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a length and that many bytes; return them and the offset behind them."""
    (length,) = _LENGTH.unpack_from(data, at)
    start = at + _LENGTH.size
    if length > len(data) - start:
        raise struct.error("a string that ends behind the data")
    return data[start : start + length], start + length


def _unknown_export(option: int, why: str) -> bytes:
    return wire.option_reply(option, wire.REP_ERR_UNKNOWN, why.encode()[: wire.MAX_STRING])
