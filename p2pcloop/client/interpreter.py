"""Modules of ours as programs, run by the interpreter that runs this one."""

from __future__ import annotations

import os
import subprocess
import sys


def module_command(module: str) -> list[str]:
    """The words that run a module.

    The current directory is not searched: a package called p2pcloopd there must not be taken for
    ours. Where this process is isolated from the user's own Python packages (`-I`, as installed by
    a distribution), so is the new one.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module]


def run_module(module: str, *words: str, line: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run a module that works for this process, with a pipe from it as its standard input: that
    ends when this process does, even if it is killed, and so should the module.

    Args:
        line: what it is told there, at most some pages.

    What it answers may be no text: paths are not.
    """
    reader, writer = os.pipe()
    try:
        os.write(writer, line.encode())
        return subprocess.run(
            [*module_command(module), *words],
            stdin=reader,
            capture_output=True,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
