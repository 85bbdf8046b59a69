"""A terminal at the console of a guest that another process runs."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from typing import Literal

import trio

from p2pcloop.client.guests import GuestProcess
from p2pcloop.errors import P2pcloopError
from p2pcloop.store.guests import GuestFolder
from p2pcloopd.control_client import ConnectionLostError, ControlClient
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.console import CHUNK, Sink, guest_keys, is_our_terminal, ready
from p2pcloopd.guest.escape import ATTACHED, ATTACHED_BRIEF, ATTACHED_HELP, Command, EscapeFilter
from p2pcloopd.guest.messages import report
from p2pcloopd.guest.signals import counted_signals

_STDIN = 0
_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGWINCH, signal.SIGCONT),
)

QUIET_SECONDS = 2.0
"""A guest that prints nothing for so long after the end of piped input is left."""


Ending = Literal["ended", "left", "signal"]
"""Why a terminal is not attached any more: the guest has ended or is about to; the user left it, or
input or output has ended; a signal asked for it."""


def attach(folder: GuestFolder, process: GuestProcess) -> Ending:
    """Connect this process's terminal, or its input and output, to a guest's console.

    Raises:
        DaemonError: the guest cannot be reached.
    """
    return run(lambda: _attach(folder, process))


async def _attach(folder: GuestFolder, process: GuestProcess) -> Ending:
    client = ControlClient(folder.socket_path)
    is_terminal = is_our_terminal(_STDIN)
    with plain_errors(), ExitStack() as stack:
        # Given back last: no signal may end this process while the terminal is the guest's.
        signals = stack.enter_context(counted_signals(*_SIGNALS))
        sink = Sink("stdio")
        stack.callback(sink.close)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            terminal = _Attached(client, process, sink, nursery.cancel_scope)
            if is_terminal:
                report(f"p2pcloop: {ATTACHED_BRIEF}")
                terminal.set_up = stack.enter_context(guest_keys(_STDIN))
                nursery.start_soon(terminal.send_size)
            nursery.start_soon(terminal.obey_signals, signals)
            nursery.start_soon(terminal.type_input, is_terminal)
            await terminal.show_output()
            nursery.cancel_scope.cancel()
    return terminal.ending


class _Attached:
    """A terminal, or an input and an output, that a guest's console is shown at.

    Attributes:
        ending: why it is not attached any more.
        set_up: gives the terminal the settings again that a shell has changed.
    """

    def __init__(
        self,
        client: ControlClient,
        process: GuestProcess,
        sink: Sink,
        scope: trio.CancelScope,
    ) -> None:
        self._client = client
        self._process = process
        self._sink = sink
        self._scope = scope
        self.ending: Ending = "left"
        self.set_up: Callable[[], None] = lambda: None
        self._printed = trio.Event()

    async def show_output(self) -> None:
        """Write what the guest prints, until it ends or the output is closed."""
        position = -1
        while self._sink.is_open:
            try:
                answer = await self._client.call("console_output", after=position)
            except ConnectionLostError:
                self.ending = "ended"
                return
            self._printed.set()
            self._printed = trio.Event()
            await self._sink.write(answer["data"])
            position = answer["position"] + len(answer["data"])

    async def obey_signals(self, signals: AsyncIterator[int]) -> None:
        """Follow the terminal's size, and leave the guest when this process is to end."""
        async for number in signals:
            if number not in (signal.SIGWINCH, signal.SIGCONT):
                self.ending = "signal"
                self._scope.cancel()
                return
            if number == signal.SIGCONT and is_our_terminal(_STDIN):
                self.set_up()
            await self.send_size()

    async def send_size(self) -> None:
        """Give the guest's console the size of this terminal."""
        with suppress(termios.error, P2pcloopError):
            rows, columns = termios.tcgetwinsize(_STDIN)
            if rows and columns:
                await self._client.call("console_size", rows=rows, columns=columns)

    async def type_input(self, is_terminal: bool) -> None:
        """Type what is read from standard input, until its end or until the user leaves."""
        escape = EscapeFilter(ATTACHED)
        with suppress(ConnectionLostError):
            while data := await _read_input():
                for piece in escape.feed(data) if is_terminal else [data]:
                    if isinstance(piece, bytes):
                        await self._client.call("console_input", data=piece)
                    elif piece == "leave":
                        self._leave()
                        return
                    else:
                        self._obey(piece)
        if not is_terminal:
            await self._wait_until_quiet()
        self._leave()

    def _leave(self) -> None:
        self._scope.cancel()

    async def _wait_until_quiet(self) -> None:
        while True:
            with trio.move_on_after(QUIET_SECONDS) as quiet:
                await self._printed.wait()
            if quiet.cancelled_caught:
                return

    def _obey(self, command: Command) -> None:
        match command:
            case "shutdown":
                self._process.signal(signal.SIGTERM)
            case "kill":
                self._process.kill()
            case _:
                report(ATTACHED_HELP)


async def _read_input() -> bytes:
    while True:
        await ready(trio.lowlevel.wait_readable, _STDIN)
        try:
            return os.read(_STDIN, CHUNK)
        except BlockingIOError:
            continue
        except OSError:  # the terminal is gone, or standard input is closed
            return b""
