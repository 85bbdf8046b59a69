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

INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
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

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_ERR_UNSUP: Final = (1 << 31) + 1
REP_ERR_INVALID: Final = (1 << 31) + 3
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
CAN_MULTI_CONN: Final = 1 << 8

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1

EPERM: Final = 1
EIO: Final = 5
EINVAL: Final = 22
ENOSPC: Final = 28

_ERROR_OF_ERRNO: Final = {
    errno.EPERM: EPERM,
    errno.EACCES: EPERM,
    errno.EROFS: EPERM,
    errno.ENOSPC: ENOSPC,
    errno.EDQUOT: ENOSPC,
    errno.EFBIG: ENOSPC,
}


class RemoteProtocolError(FormatError):
    """The client broke the protocol; nothing more can be made of what it sends: drop it."""


class LocalProtocolError(Exception):
    """We used the protocol object wrongly: a bug of ours."""


def error_of_errno(number: int) -> int:
    """The NBD error that tells a client of a local errno ("Error values"); EIO for all others."""
    return _ERROR_OF_ERRNO.get(number, EIO)


def option_reply(option: int, reply_type: int, data: bytes = b"") -> bytes:
    """One reply of the option haggling."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply_type, len(data)) + data
