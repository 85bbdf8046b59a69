"""`p2pcloop umount`: end a mount."""

from __future__ import annotations

from pathlib import Path

import click

from p2pcloop.cli.options import DirectoryPath, quiet_option
from p2pcloopd.fusermount import check_ours, real_path, unmount

_EPILOG = """
\b
Examples:
  p2pcloop umount p2p

`fusermount3 -u DIRECTORY` does the same, and refuses while files are open.
"""


@click.command(epilog=_EPILOG)
@click.argument("directory", type=DirectoryPath())
@quiet_option
def command(directory: Path) -> None:
    """Unmount what `p2pcloop mount` shows at DIRECTORY.

    Files that are open stay readable until they are closed; then its process ends. A mount whose
    process died is unmounted, too.
    """
    path = real_path(directory)
    check_ours(path)
    unmount(path)
