"""The errors of p2pcloop, one class per cause, each with a stable exit code.

A message says what happened and why; `hint` says what to do. Exceptions of libraries and of the
system are translated into these where they enter (`raise ... from err`).
"""

from __future__ import annotations

import errno as codes
import os

from p2pcloop.words import tr


class P2pcloopError(Exception):
    """Base of every error that a user can meet.

    Attributes:
        hint: one sentence that says what to do, or None where the message already does.
        exit_code: what the command line exits with.
        facts_told: the command has told its facts, as JSON where that is wanted, and ends with
            this error all the same; then it is told to people alone.
    """

    exit_code = 1
    facts_told = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """What happened, as it was given: it can be said in other languages (`words.translated`),
        which `str(error)`, in English, cannot."""
        message: str = self.args[0]
        return message


class UsageError(P2pcloopError):
    """The request itself is wrong: words of the command line that are no link, name or label,
    options that exclude each other, ..."""

    exit_code = 2


class FormatError(P2pcloopError):
    """Bytes from outside (a file, a manifest, a message) are not what they claim to be."""

    exit_code = 3


class CorruptError(P2pcloopError):
    """Data does not match its hash, and no source has the right data."""

    exit_code = 4


class MismatchError(P2pcloopError):
    """Two valid things do not belong together: an overlay and another image, a wrong key."""

    exit_code = 5


class BusyError(P2pcloopError):
    """Another process holds it: an overlay opened twice, a second daemon on one home."""

    exit_code = 6


class NotHereError(P2pcloopError):
    """A name, a manifest or a file that is not known here."""

    exit_code = 7


class NeedsPackageError(P2pcloopError):
    """A program or file of the system is missing; the hint names the Debian package."""

    exit_code = 8


class DaemonError(P2pcloopError):
    """p2pcloopd cannot be reached, speaks another version, or went away."""

    exit_code = 9


class GuestError(P2pcloopError):
    """The guest did not start, or ended in a way that is not a clean shutdown."""

    exit_code = 10


class StorageError(P2pcloopError):
    """The local disk refused: no space, no permission, an I/O error.

    `errno` is kept so that a block server can pass ENOSPC on to the guest.
    """

    exit_code = 11

    def __init__(self, message: str, *, errno: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class UnreachableError(P2pcloopError):
    """A server or a mirror that was asked did not answer, or answered that it will not."""

    exit_code = 12


_HINTS = {
    codes.ENOSPC: "free some space on that file system",
    codes.EDQUOT: "free some of your disk quota",
    codes.EACCES: "check the permissions of the file and its folder",
    codes.EROFS: "it is mounted read-only: choose another place",
    codes.ENAMETOOLONG: "choose a shorter name",
    codes.ELOOP: "symbolic links there lead to each other: remove one of them",
    codes.ENOTDIR: "a file lies where a folder is needed: move it away",
    codes.EIO: "the disk or its connection has a fault: `dmesg` tells more",
}


def storage_error(what: str, err: OSError, *, hint: str | None = None) -> StorageError:
    """Make a `StorageError` of an error of the system: what failed, and the system's answer."""
    code = err.errno or codes.EIO
    return StorageError(
        tr("{what}: {why}", what=what, why=os.strerror(code)),
        errno=code,
        hint=hint or _HINTS.get(code),
    )
