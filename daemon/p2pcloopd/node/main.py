"""`p2pcloopd`: a node in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from functools import partial

import click
import trio

from p2pcloop.cli.options import node_home_option
from p2pcloop.client.terminal import open_standard_streams
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.config import LOG_LEVELS
from p2pcloop.protocol.control import Event, Failure, encode
from p2pcloop.store.home import Home
from p2pcloopd.entry import allow_many_files, run
from p2pcloopd.log_output import LogOutput
from p2pcloopd.node.run import run_node
from p2pcloopd.node.service_manager import notify_service_manager, take_passed_socket

_log = logging.getLogger("p2pcloopd")


class _Starter:
    """Who started this process and reads one message from us: that we are ready, or why not.

    A command reads it from a pipe, a service manager from a socket of its own."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self, warnings: list[str]) -> None:
        notify_service_manager("READY=1")
        self._report(encode(Event(0, "ready", {"pid": os.getpid(), "warnings": warnings})))

    def failed(self, error: P2pcloopError) -> None:
        self._report(encode(Failure(0, error)))

    def _report(self, frame: bytes) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it did not want to wait so long
            os.write(self._fd, frame)
        os.close(self._fd)
        self._fd = None


async def _run(home: Home, starter: _Starter, passed: socket.socket | None, log: LogOutput) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        await run_node(home, starter.ready, log, passed)
        nursery.cancel_scope.cancel()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("stopping: %s", signal.Signals(number).name)
            notify_service_manager("STOPPING=1")
            scope.cancel()


@click.command("p2pcloopd", context_settings={"help_option_names": ["-h", "--help"]})
@node_home_option
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    help="How much to say.  [default: the setting log_level]",
)
@click.option("--ready-fd", type=int, hidden=True)
def command(home: Home, log_level: str | None, ready_fd: int | None) -> None:
    """Run a node: seed what is here, fetch what is asked for, until SIGTERM or SIGINT.

    Commands start it by themselves; `p2pcloop daemon stop` stops it.
    """
    os.umask(0o077)
    if ready_fd is not None:
        os.chdir("/")  # a command started it: the file system where that ran must not be busy
    allow_many_files()  # a file that is seeded where it lies stays open, and so do connections
    log = LogOutput(log_level)
    starter = _Starter(ready_fd)
    try:
        run(partial(_run, home, starter, take_passed_socket(home.control_socket), log))
    except P2pcloopError as error:
        starter.failed(error)
        _log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        sys.exit(error.exit_code)


def main() -> None:
    """The entry point of the program `p2pcloopd`."""
    open_standard_streams()
    command()
