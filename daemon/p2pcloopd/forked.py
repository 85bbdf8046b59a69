"""Starts p2pcloopd as a fork of the command that needs it.

A boot waits for p2pcloopd before anything else, and half of what p2pcloopd loads is what the
command needs, too. A fork of the command has it loaded already.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from p2pcloop.client.daemon import READY_FD, daemon_options, open_log, spawn_daemon
from p2pcloop.client.terminal import VARIABLE
from p2pcloop.loading import loading
from p2pcloop.store.home import Home

_SHARED = (
    "trio",
    "p2pcloop.store.profiles",
    "p2pcloop.store.records",
    "p2pcloopd.control_server",
    "p2pcloopd.entry",
)
"""Modules that the command and p2pcloopd both need, with all that they import."""

_ARGUMENTS_START, _ARGUMENTS_END = 45, 46
"""Where /proc/PID/stat has the addresses of the command line, counted from the state (proc(5))."""


def fork_daemon(home: Home, ready: int) -> int:
    """Start a p2pcloopd; see `p2pcloop.client.daemon.Start`.

    This must be called before trio runs, and without other threads.
    """
    if VARIABLE in os.environ:  # a fork would keep the passphrase in its memory
        return spawn_daemon(home, ready)
    with loading():
        for name in _SHARED:
            importlib.import_module(name)
    sys.stdout.flush()
    sys.stderr.flush()
    with open_log(home.log) as log:
        pid = os.fork()
        if not pid:
            _run_and_exit(home, log, ready)
    return pid


def _run_and_exit(home: Home, log: int, ready: int) -> NoReturn:
    """Be p2pcloopd, to its end. It ends by `_exit`, so that it cleans up nothing of the
    command's."""
    exit_code: object = 1
    try:
        os.setsid()
        _keep_only(log, ready)
        options = daemon_options(home)
        _call_process(" ".join(["p2pcloopd", *options]))
        logging.root.handlers.clear()
        with loading():
            node = importlib.import_module("p2pcloopd.node.main")
        node.command.main(options, "p2pcloopd")
    except SystemExit as end:
        exit_code = end.code
    except BaseException:
        import traceback  # noqa: PLC0415  for a bug of ours only

        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(exit_code if isinstance(exit_code, int) else int(exit_code is not None))


def _keep_only(log: int, ready: int) -> None:
    """Leave open what a p2pcloopd has at its start, and nothing of the command's."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(ready, READY_FD, inheritable=False)
    os.closerange(READY_FD + 1, os.sysconf("SC_OPEN_MAX"))


def _call_process(title: str) -> None:
    """Show `title` as this process's command line, as far as there is room.

    That of the command may name a link with a secret, and would be shown as long as this runs.
    """
    with suppress(OSError, ValueError, IndexError):
        Path("/proc/self/comm").write_text("p2pcloopd")
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
        room = end - start
        if room > 0:
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(start)
                memory.write(os.fsencode(title)[: room - 1].ljust(room, b"\0"))
