"""The last part of a first root that runs one command: resources/run.sh, then command.sh."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from p2pcloopd.guest.system.initramfs import CPUINFO, Part


def command_ending(command: Sequence[str]) -> Part:
    """Return the part of a first root that runs `command` in place of an init."""
    words = b" ".join(os.fsencode(shlex.quote(word)) for word in command)
    return Part(
        steps=(CPUINFO, "run"),
        scripts=("become", "command", "start"),
        applets=("chmod", "cp", "grep", "ln", "sed", "switch_root"),
        modules=("virtio_console",),
        files=(("command", b"set -- " + words + b"\n"),),
    )
