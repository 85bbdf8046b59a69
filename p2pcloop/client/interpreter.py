"""Modules of ours as programs, run by the interpreter that runs this one."""

from __future__ import annotations

import sys


def module_command(module: str) -> list[str]:
    """The words that run a module.

    The current directory is not searched: a package called p2pcloopd there must not be taken for
    ours. Where this process is isolated from the user's own Python packages (`-I`, as installed by
    a distribution), so is the new one.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module]
