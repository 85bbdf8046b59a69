"""Addresses of unix sockets for paths of any length.

A unix socket's address holds 107 bytes of path (unix(7): `sun_path` has 108 with the final NUL),
a path may have 4095. A socket that lies deeper is reached through a descriptor of its directory:
`/proc/self/fd/<fd>/<name>` (proc(5)), for bind(2) as for connect(2).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pcloop.errors import UsageError
from p2pcloop.words import tr

SOCKET_PATH_LIMIT = 107
"""Bytes of a unix socket's address."""

_NAME_LIMIT = SOCKET_PATH_LIMIT - len("/proc/self/fd/1234567/")


_ROOM_BELOW = 48
"""Bytes for the name of a temporary directory and of a socket in it."""


def socket_folder() -> str:
    """The directory in which to make a temporary directory for a socket of another program.

    It is the directory for temporary files, unless its path is too long (TMPDIR of a build system):
    then the user's runtime directory, else /tmp.
    """
    folders = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", "")]
    for folder in folders:
        short = len(os.fsencode(folder)) + _ROOM_BELOW <= SOCKET_PATH_LIMIT
        if short and Path(folder).is_absolute() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return "/tmp"  # noqa: S108  a directory of our own is made in it


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address for the socket at `path`, valid inside the block and in this process only.

    Raises:
        UsageError: the name of the socket itself is too long.
        OSError: its directory cannot be opened.
    """
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        yield os.fspath(path)
        return
    if len(os.fsencode(path.name)) > _NAME_LIMIT:
        raise UsageError(
            tr(
                "the name of the socket {path} has more than {name_limit} bytes",
                path=path,
                name_limit=_NAME_LIMIT,
            ),
            hint="choose a shorter name for it; its folder may lie as deep as you like",
        )
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
