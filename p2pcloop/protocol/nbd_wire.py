"""Numbers and layouts of the NBD protocol, all big-endian.

Source: doc/proto.md of NetworkBlockDevice/nbd; names are the specification's without `NBD_`.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from p2pcloop.errors import FormatError

GREETING: Final = struct.Struct(">8s8sH")
"""NBDMAGIC, IHAVEOPT, handshake flags."""
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">8sII")
"""IHAVEOPT, option, length of the data that follows."""
OPTION_REPLY: Final = struct.Struct(">QIII")
"""Magic, option, reply type, length of the data that follows."""
INFO_EXPORT_REPLY: Final = struct.Struct(">HQH")
"""INFO_EXPORT, size, transmission flags."""
INFO_BLOCK_SIZE_REPLY: Final = struct.Struct(">HIII")
"""INFO_BLOCK_SIZE, smallest, preferred and largest request."""
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
"""Size, transmission flags; then 124 zeros unless both sides set NO_ZEROES."""
REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, command flags, command, cookie, offset, length."""
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
"""Magic, error, cookie."""
CHUNK: Final = struct.Struct(">IHHQI")
"""A chunk of a structured reply: magic, flags, type, cookie, length of the payload."""
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
"""The same with the offset that begins the payload of OFFSET_DATA; the data follow."""
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")
"""The same with the payload of OFFSET_HOLE: offset, length of the hole."""
ERROR: Final = struct.Struct(">IH")
"""Payload of an ERROR chunk: error, length of the message that follows."""
CONTEXT_ID: Final = struct.Struct(">I")
EXTENT: Final = struct.Struct(">II")
"""One descriptor of a BLOCK_STATUS chunk: length, status flags."""

INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXPORT_NAME_PADDING: Final = bytes(124)

FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = (1 << 31) + 1
REP_ERR_INVALID: Final = (1 << 31) + 3
REP_ERR_TLS_REQD: Final = (1 << 31) + 5
REP_ERR_UNKNOWN: Final = (1 << 31) + 6
REP_ERR_TOO_BIG: Final = (1 << 31) + 9

INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3

HAS_FLAGS: Final = 1 << 0
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_FUA: Final = 1 << 3
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
SEND_DF: Final = 1 << 7
CAN_MULTI_CONN: Final = 1 << 8
SEND_CACHE: Final = 1 << 10
SEND_FAST_ZERO: Final = 1 << 11

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

REPLY_FLAG_DONE: Final = 1 << 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_ERROR: Final = (1 << 15) + 1

STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

EPERM: Final = 1
EIO: Final = 5
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95

MAX_STRING: Final = 4096
"""Bytes of any string, such as the message of an error ("Values")."""

_ERROR_OF_ERRNO: Final = {
    errno.EPERM: EPERM,
    errno.EACCES: EPERM,
    errno.EROFS: EPERM,
    errno.ENOSPC: ENOSPC,
    errno.EDQUOT: ENOSPC,
    errno.EFBIG: ENOSPC,
}


class RemoteProtocolError(FormatError):
    """The client broke the protocol: drop the connection."""


class LocalProtocolError(Exception):
    """Our own bug: the protocol object was used wrongly."""


def error_of_errno(number: int) -> int:
    """The NBD error for a local errno ("Error values"); EIO for all others."""
    return _ERROR_OF_ERRNO.get(number, EIO)


def option_reply(option: int, reply_type: int, data: bytes = b"") -> bytes:
    """One reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply_type, len(data)) + data
