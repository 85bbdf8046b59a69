"""The process that serves the page: started by p2pcloopd, and ended when no browser looks.

Its standard input has one line of JSON, with its home, the token, the port, the descriptor of the
listening socket, and the settings of the log, which it shares with p2pcloopd. Each change of these
comes as one more line. p2pcloopd keeps the other end open: when that closes, p2pcloopd has ended.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import trio

from p2pcloop.store.home import Home
from p2pcloopd.entry import run
from p2pcloopd.log_output import LogOutput
from p2pcloopd.web.http import Viewers, serve
from p2pcloopd.web.jobs import Jobs
from p2pcloopd.web.live import Live
from p2pcloopd.web.site import Site

UNUSED_SECONDS = 30
"""Without a browser for so long, the process ends; p2pcloopd starts it anew when one connects."""

_MAX_LINE = 1 << 16


def main() -> None:
    """Serve until no browser looks and no job runs, or p2pcloopd ends."""
    os.umask(0o077)
    log = LogOutput(None)
    with io.FileIO(sys.stdin.fileno(), closefd=False) as stdin:  # which reads no byte behind it
        told = json.loads(stdin.readline(_MAX_LINE))
    log.set_up(**told["log"])
    run(lambda: _serve(told, log))


async def _serve(told: Mapping[str, Any], log: LogOutput) -> None:
    home, port = Home.at(told["home"]), told["port"]
    listening = socket.socket(fileno=told["listener"])
    listening.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    hosts = [f"{host}:{port}" for host in ("127.0.0.1", "localhost")]
    viewers = Viewers()
    async with trio.open_nursery() as nursery:
        jobs = Jobs(home, nursery)
        site = Site(home, jobs, Live(home, jobs, nursery))
        nursery.start_soon(_follow_the_node, sys.stdin.fileno(), log, nursery.cancel_scope)
        nursery.start_soon(serve, listener, told["token"], hosts, site.answer, viewers)
        await viewers.wait_gone(UNUSED_SECONDS)
        while jobs.running:
            await jobs.changed.wait()
            await viewers.wait_gone(UNUSED_SECONDS)
        nursery.cancel_scope.cancel()


async def _follow_the_node(fd: int, log: LogOutput, scope: trio.CancelScope) -> None:
    """Take over changes of the log's settings, and end with p2pcloopd."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(fd)) as stream:
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                log.set_up(**json.loads(line)["log"])
    scope.cancel()


if __name__ == "__main__":
    main()
