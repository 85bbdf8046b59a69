"""A file that takes its place when it is whole.

Until then it has no name, so nothing of it stays where this process is killed. Some file systems
have no files without a name (vfat, NFS): there it has a hidden one beside its place.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from p2pcloop.formats.named import sync_names
from p2pcloop.store.file_facts import set_mode

_KEPT = 40
"""Characters of its name in a hidden one: a name has 255 bytes at most."""

_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)


class NewFile:
    """See the module; to be made by `new_file`.

    Attributes:
        path: its place.
        file: for its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hidden: Path | None = None
        try:
            fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as err:
            if err.errno not in _NO_NAMELESS:
                raise
            fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_KEPT]}.")
            self._hidden = Path(name)
        self.file: BinaryIO = os.fdopen(fd, "wb")

    def take_place(self) -> None:
        """Have it replace what is at its place. Its content must be durable.

        Raises:
            OSError: the system refused.
        """
        if self._hidden is None:
            hidden = self.path.with_name(f".{self.path.name[:_KEPT]}.{secrets.token_hex(6)}")
            folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # With a descriptor Python calls linkat(2), which alone follows that link.
                os.link(f"/proc/self/fd/{self.file.fileno()}", hidden.name, dst_dir_fd=folder)
            finally:
                os.close(folder)
            self._hidden = hidden
        take_place(self._hidden, self.path)
        self._hidden = None

    def close(self) -> None:
        """Close it; it goes, unless it has taken its place."""
        try:
            self.file.close()
        finally:
            if self._hidden is not None:
                self._hidden.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """A new file for a place, in this context. Errors are `OSError`."""
    new = NewFile(path)
    try:
        yield new
    finally:
        new.close()


def take_place(made: Path, path: Path) -> None:
    """Rename a durable file to `path`, with the mode of any new file.

    Raises:
        OSError: the system refused.
    """
    umask = os.umask(0)
    os.umask(umask)
    set_mode(made, 0o666 & ~umask)
    made.replace(path)
    sync_names(path.parent)
