"""Permissions and times of files that were just made, on file systems that may keep none.

A stick with vfat gives each file the owner and the permissions that it was mounted with. If that
owner is another user, chmod(2) and utime(2) are refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KEEPS_NONE = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


def set_mode(file: int | Path, mode: int) -> None:
    """Set the permissions of a file that this process made, where its file system keeps them.

    Raises:
        OSError: the disk failed.
    """
    with _if_kept():
        os.chmod(file, mode)  # noqa: PTH101  of a descriptor, too


def set_time(file: int | Path, seconds: int) -> None:
    """Set the time at which a file was changed, likewise."""
    with _if_kept():
        os.utime(file, (seconds, seconds))


@contextmanager
def _if_kept() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno not in _KEEPS_NONE:
            raise
