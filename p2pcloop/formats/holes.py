"""Holes in files: finding them, and making them by fallocate(2), which Python lacks."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from typing import cast

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h
_KEEPS_ROOM = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOSPC, errno.EINTR)


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Free the disk room of a range of a file, which then reads as zeros; the size stays.

    Returns:
        False if the file system cannot make holes; then nothing was changed.

    Raises:
        OSError: the disk failed.
    """
    fallocate = _fallocate()
    if fallocate is None:
        return False
    if fallocate(descriptor, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code not in _KEEPS_ROOM:
        raise OSError(code, os.strerror(code))
    return False


def next_data(descriptor: int, offset: int) -> int:
    """The next byte of a file that is not in a hole; its end if there is none.

    If the system does not report holes (block devices, some file systems), all bytes are data.

    Raises:
        OSError: the disk failed.
    """
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as err:
        if err.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return offset
        if err.errno != errno.ENXIO:
            raise
        return os.fstat(descriptor).st_size


def next_hole(descriptor: int, offset: int) -> int:
    """The next byte of a file that is in a hole, from a byte of data on; its end if there is none.

    Raises:
        OSError: the disk failed.
    """
    try:
        return os.lseek(descriptor, offset, os.SEEK_HOLE)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.fstat(descriptor).st_size


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's function; None if it has none for 64 bits."""
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except AttributeError:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int, int], int]", function)
