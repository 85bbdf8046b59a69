"""What an NBD server serves, what may be asked of it, and how the options of a client are answered.

Pure functions of one option or one request; `nbd.py` holds the state between them. There is one
export, under the empty name. Source: doc/proto.md of NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd_wire import RemoteProtocolError
from p2pcloop.units import BLOCK_SIZE, SECTOR_SIZE

MAX_PAYLOAD: Final = 32 << 20
"""The largest READ or WRITE, as the specification recommends ("Size constraints")."""

_ALLOWED_FLAGS: Final = {
    wire.CMD_READ: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE: wire.CMD_FLAG_FUA,
    wire.CMD_FLUSH: wire.CMD_FLAG_FUA,
    wire.CMD_TRIM: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE,
}


@dataclass(frozen=True, slots=True)
class Export:
    """What is served: `size` in bytes, a multiple of 512."""

    size: int
    read_only: bool

    @property
    def transmission_flags(self) -> int:
        """What clients are told; one device stands behind all connections, hence CAN_MULTI_CONN."""
        flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.CAN_MULTI_CONN
        if self.read_only:
            return flags | wire.READ_ONLY
        return flags | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES


def check_request(export: Export, command: int, flags: int, offset: int, length: int) -> int:
    """The NBD error that refuses a request, or 0 ("Request types", "Error values")."""
    allowed = _ALLOWED_FLAGS.get(command)
    if allowed is None or flags & ~allowed:
        return wire.EINVAL
    if command == wire.CMD_FLUSH:
        return wire.EINVAL if offset or length else 0
    if export.read_only and command != wire.CMD_READ:
        return wire.EPERM
    if not length or (offset | length) % SECTOR_SIZE:
        return wire.EINVAL
    if offset + length > export.size:
        writes = command in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES)
        return wire.ENOSPC if writes else wire.EINVAL
    if command == wire.CMD_READ and length > MAX_PAYLOAD:
        return wire.EINVAL
    return 0


class Then(enum.Enum):
    """How the haggling goes on after an option."""

    NEXT_OPTION = enum.auto()
    TRANSMISSION = enum.auto()
    END = enum.auto()


def answer_option(
    export: Export, option: int, data: bytes, *, no_zeroes: bool
) -> tuple[bytes, Then]:
    """The bytes that answer an option, and what comes after it ("Option types").

    Args:
        no_zeroes: the client wants no padding behind the answer to EXPORT_NAME.

    Raises:
        RemoteProtocolError: EXPORT_NAME with a name that is not served has no other answer.
    """
    if option == wire.OPT_EXPORT_NAME:
        return _choose_export(export, data, no_zeroes=no_zeroes), Then.TRANSMISSION
    if option in (wire.OPT_INFO, wire.OPT_GO):
        return _describe_export(export, option, data)
    if option == wire.OPT_ABORT:
        return wire.option_reply(option, wire.REP_ACK), Then.END
    if option != wire.OPT_LIST:
        return wire.option_reply(option, wire.REP_ERR_UNSUP), Then.NEXT_OPTION
    if data:
        return wire.option_reply(option, wire.REP_ERR_INVALID), Then.NEXT_OPTION
    empty_name = wire.option_reply(option, wire.REP_SERVER, bytes(4))
    return empty_name + wire.option_reply(option, wire.REP_ACK), Then.NEXT_OPTION


def _choose_export(export: Export, name: bytes, *, no_zeroes: bool) -> bytes:
    if name:
        raise RemoteProtocolError(f"the client asked for export {_quoted(name)}: only '' is served")
    chosen = wire.EXPORT_NAME_REPLY.pack(export.size, export.transmission_flags)
    return chosen if no_zeroes else chosen + wire.EXPORT_NAME_PADDING


def _describe_export(export: Export, option: int, data: bytes) -> tuple[bytes, Then]:
    parsed = _parse_info(data)
    if parsed is None:
        return wire.option_reply(option, wire.REP_ERR_INVALID), Then.NEXT_OPTION
    name, wanted = parsed
    if name:
        told = f"no export {_quoted(name)}: the device has the empty name".encode()
        return wire.option_reply(option, wire.REP_ERR_UNKNOWN, told), Then.NEXT_OPTION
    info = wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, export.size, export.transmission_flags)
    replies = wire.option_reply(option, wire.REP_INFO, info)
    if wire.INFO_BLOCK_SIZE in wanted:
        sizes = wire.INFO_BLOCK_SIZE_REPLY.pack(
            wire.INFO_BLOCK_SIZE, SECTOR_SIZE, BLOCK_SIZE, MAX_PAYLOAD
        )
        replies += wire.option_reply(option, wire.REP_INFO, sizes)
    then = Then.TRANSMISSION if option == wire.OPT_GO else Then.NEXT_OPTION
    return replies + wire.option_reply(option, wire.REP_ACK), then


def _parse_info(data: bytes) -> tuple[bytes, tuple[int, ...]] | None:
    """Name and information requests of INFO and GO; None where the lengths do not add up."""
    if len(data) < 6:
        return None
    name_end = 4 + int.from_bytes(data[:4], "big")
    if name_end > len(data) - 2:
        return None
    count = int.from_bytes(data[name_end : name_end + 2], "big")
    if len(data) != name_end + 2 + 2 * count:
        return None
    return data[4:name_end], struct.unpack_from(f">{count}H", data, name_end + 2)


def _quoted(name: bytes) -> str:
    return repr(name[:64].decode("utf-8", "replace"))
