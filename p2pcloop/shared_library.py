"""Shared libraries of the system, called through ctypes."""

from __future__ import annotations

import ctypes

from p2pcloop.errors import NeedsPackageError


def load_library(name: str, needed_for: str, hint: str) -> ctypes.CDLL:
    """Load a shared library of the system.

    Args:
        name: of its file, with the version of its interface ("liblzma.so.5").
        needed_for: what the user wanted and the library's name, for the message.
        hint: how to install it.

    Raises:
        NeedsPackageError: it is not installed.
    """
    try:
        return ctypes.CDLL(name)
    except OSError as err:
        raise NeedsPackageError(needed_for, hint=hint) from err
