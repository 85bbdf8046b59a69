"""The web page: a listening socket, and the process that serves it while a browser looks.

Until `p2pcloop web` asks for it there is no socket. Each time that it is asked for, and each time
that a browser connects, a process is started if none runs (p2pcloopd/web/process.py). It ends when
no browser looks. p2pcloopd itself serves nothing of the page: a map that is computed, or a bug
there, delays no guest.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from trio.lowlevel import wait_readable

from p2pcloop.client.interpreter import module_command
from p2pcloop.errors import BusyError
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.log_output import LogOutput
from p2pcloopd.tasks import race, run_while

HOST = "127.0.0.1"
_TOKEN_BYTES = 24
_AGAIN_SECONDS = 1.0
"""Between two starts of a process that ends at once."""

_log = logging.getLogger(__name__)


class WebPage:
    """The page of a node."""

    def __init__(self, home: Home, log: LogOutput) -> None:
        self._home = home
        self._log = log
        self._token = ""
        self._listener: trio.socket.SocketType | None = None
        self._asked = trio.Event()

    async def open(self) -> str:
        """Have the page served, and return its URL.

        Raises:
            BusyError: no port is free.
        """
        if self._listener is None:
            listener = trio.socket.socket()
            try:
                await listener.bind((HOST, 0))
                listener.listen()
            except OSError as err:
                listener.close()
                raise BusyError(tr("no port for the web page: {why}", why=err.strerror)) from err
            self._listener, self._token = listener, secrets.token_urlsafe(_TOKEN_BYTES)
        self._asked.set()  # the browser that is about to connect need not wait for the process
        return f"http://{HOST}:{self._port()}/{self._token}/"

    async def run(self) -> None:
        """Start the process each time that it is needed and does not run, for ever."""
        await self._asked.wait()
        assert self._listener is not None, "it was opened"
        with self._listener:
            while True:
                try:
                    code = await self._serve(self._listener.fileno())
                except OSError as err:  # no memory, or no descriptors: guests go on
                    _log.error("the web page's process does not start: %s", err.strerror)
                    code = 1
                self._asked = trio.Event()
                if code:
                    _log.error("the web page's process ended with status %d", code)
                    await trio.sleep(_AGAIN_SECONDS)
                await race(self._asked, partial(wait_readable, self._listener.fileno()))

    def _port(self) -> int:
        assert self._listener is not None, "it was opened"
        port: int = self._listener.getsockname()[1]
        return port

    async def _serve(self, listener: int) -> int:
        """Run the process to its end; return its exit code."""
        told = {
            "home": os.fspath(self._home.root),
            "token": self._token,
            "port": self._port(),
            "listener": listener,
        }
        process = await trio.lowlevel.open_process(
            module_command("p2pcloopd.web.process"), stdin=subprocess.PIPE, pass_fds=[listener]
        )
        assert process.stdin is not None, "it was asked for"
        async with process.stdin as stdin:  # that it closes ends the process
            return await run_while(partial(self._tell, stdin, told), process.wait)

    async def _tell(self, stdin: trio.abc.SendStream, told: dict[str, Any]) -> None:
        """Tell the process what it needs, and each change of the log's settings."""
        with suppress(trio.BrokenResourceError):
            while True:
                changed = self._log.changed.next
                line = json.dumps(told | {"log": self._log.settings()})
                await stdin.send_all(line.encode() + b"\n")
                await changed.wait()
                told = {}
