"""When each piece of a torrent was last used by a boot (docs/formats/stamps.md).

The file is `torrents/<info hash>/stamps`. It is replaced whole at the end of a boot. Only the order
of eviction depends on it: without it, or if it is damaged, no piece counts as used.
"""

from __future__ import annotations

import logging
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

from p2pcloop.errors import UsageError, storage_error
from p2pcloop.formats.named import read_file
from p2pcloop.store.home import replace_file
from p2pcloop.words import tr

MAGIC = b"P2PCUSED"
VERSION = 1
STAMPS_FILE = "stamps"

_HEADER = struct.Struct("<8sII")
_CHECK = struct.Struct("<I")

_log = logging.getLogger(__name__)


def load_stamps(directory: Path, pieces: int) -> array[int]:
    """Seconds since 1970 of each piece's last use; 0 for a piece that no boot used.

    Args:
        directory: the torrent's, in the store.
        pieces: how many it has.

    Raises:
        StorageError: the system refused.
    """
    path = directory / STAMPS_FILE
    stamps = array("I", bytes(4 * pieces))
    try:
        data = read_file(path)
    except FileNotFoundError:
        return stamps
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err
    body = data[: -_CHECK.size]
    right = (
        len(data) == _HEADER.size + 4 * pieces + _CHECK.size
        and _HEADER.unpack_from(data) == (MAGIC, VERSION, pieces)
        and _CHECK.unpack_from(data, len(body)) == (zlib.crc32(body),)
    )
    if not right:
        _log.warning("%s is damaged and not used", path)
        return stamps
    return _little_endian(array("I", body[_HEADER.size :]))


def save_stamps(directory: Path, pieces: int, used: bytes, now: int) -> None:
    """Note that pieces were used.

    Args:
        directory: the torrent's, in the store.
        pieces: how many it has.
        used: one bit a piece, most significant bit first.
        now: seconds since 1970.

    Raises:
        UsageError: there are not as many bits as pieces.
        StorageError: the system refused; the old stamps are still there.
    """
    if len(used) != (pieces + 7) // 8:
        raise UsageError(
            tr(
                "{used_count} bytes are not the bits of {pieces} pieces",
                used_count=len(used),
                pieces=pieces,
            )
        )
    stamps = load_stamps(directory, pieces)
    for piece in set_bits(used, pieces):
        stamps[piece] = max(stamps[piece], min(now, 0xFFFF_FFFF))
    body = _HEADER.pack(MAGIC, VERSION, pieces) + _little_endian(stamps).tobytes()
    replace_file(directory / STAMPS_FILE, body + _CHECK.pack(zlib.crc32(body)))


def set_bits(bits: bytes, pieces: int) -> Sequence[int]:
    """The numbers of the bits that are set, in order; bit 0 is the top one of the first byte."""
    return [p for p in range(pieces) if bits[p >> 3] & (0x80 >> (p & 7))]


def _little_endian(stamps: array[int]) -> array[int]:
    if sys.byteorder == "big":
        stamps.byteswap()
    return stamps
