"""Programs of this system."""

from __future__ import annotations

import shutil
from pathlib import Path

from p2pcloop.errors import NeedsPackageError
from p2pcloop.words import tr


def find_program(name: str, package: str) -> Path:
    """Return the path of a program of the system.

    Raises:
        NeedsPackageError: it is not on PATH.
    """
    # Debian keeps mke2fs and the like off an ordinary user's PATH.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise NeedsPackageError(
            tr("the program {name} is not installed", name=name),
            hint=tr("apt-get install {package}", package=package),
        )
    return Path(found).resolve()
