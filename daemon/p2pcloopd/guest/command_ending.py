"""What a first root does to run a command in place of an init: run.sh, then command.sh."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from importlib import resources

from p2pcloopd.guest.initramfs import Ending


def command_ending(command: Sequence[str]) -> Ending:
    """What a first root does to run `command` in place of an init."""
    here = resources.files("p2pcloopd.guest")
    words = b" ".join(os.fsencode(shlex.quote(word)) for word in command)
    return Ending(
        here.joinpath("run.sh").read_text(),
        applets=("chmod", "cp", "ln", "mkdir"),
        modules=("virtio_console",),
        files=(
            ("command.sh", here.joinpath("command.sh").read_bytes()),
            ("command", b"set -- " + words + b"\n"),
        ),
    )
