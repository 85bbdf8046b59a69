"""The process that serves the page: started by p2pcloopd, and ended when no browser looks.

Its standard input has one line of JSON, with its home, the token, the port, and the descriptor of
the listening socket. p2pcloopd keeps the other end open: when that closes, p2pcloopd has ended.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import trio

from p2pcloop.client.terminal import log_to_stderr
from p2pcloop.store.home import Home
from p2pcloopd.entry import run
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
    log_to_stderr("INFO", "%(asctime)s %(levelname)s %(name)s: %(message)s")
    told = json.loads(sys.stdin.buffer.readline(_MAX_LINE))
    run(lambda: _serve(told))


async def _serve(told: Mapping[str, Any]) -> None:
    home, port = Home.at(told["home"]), told["port"]
    listening = socket.socket(fileno=told["listener"])
    listening.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    hosts = [f"{host}:{port}" for host in ("127.0.0.1", "localhost")]
    viewers = Viewers()
    async with trio.open_nursery() as nursery:
        jobs = Jobs(home, nursery)
        site = Site(home, jobs, Live(home, jobs, nursery))
        nursery.start_soon(_end_with_the_node, nursery.cancel_scope)
        nursery.start_soon(serve, listener, told["token"], hosts, site.answer, viewers)
        await viewers.wait_gone(UNUSED_SECONDS)
        while jobs.running:
            await jobs.changed.wait()
            await viewers.wait_gone(UNUSED_SECONDS)
        nursery.cancel_scope.cancel()


async def _end_with_the_node(scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    scope.cancel()


if __name__ == "__main__":
    main()
