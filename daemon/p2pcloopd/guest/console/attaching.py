"""A terminal at the console of a guest that another process runs."""

from __future__ import annotations

import signal
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress

import trio

from p2pcloop.client.guests import GuestProcess
from p2pcloop.client.invocation import is_quiet
from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloop.store.guests import GuestFolder
from p2pcloop.words import joined, tr
from p2pcloopd.control_client import ConnectionLostError, ControlClient
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.console.console import Sink, guest_keys, is_our_terminal
from p2pcloopd.guest.console.escape import ATTACHED, ATTACHED_BRIEF, ATTACHED_HELP, Command
from p2pcloopd.guest.console.keyboard import Keyboard
from p2pcloopd.guest.console.messages import report
from p2pcloopd.guest.console.prompts import PromptWatch
from p2pcloopd.guest.console.signals import counted_signals

_STDIN = 0
_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGWINCH, signal.SIGCONT),
)


def attach(folder: GuestFolder, process: GuestProcess) -> tuple[bool, int]:
    """Connect this process's terminal, or its input and output, to a guest's console.

    Returns:
        Whether the guest has ended, or is about to; else the user left it, or input or output has
        ended. And the number of the signal that asked this process to end, or 0.

    Raises:
        GuestError: the guest cannot be reached: it ends, or did while it started.
        DaemonError: it speaks another version.
    """
    return run(lambda: _attach(folder, process))


async def _attach(folder: GuestFolder, process: GuestProcess) -> tuple[bool, int]:
    client = ControlClient(folder.socket_path, tr("the guest {folder}", folder=folder.name))
    is_terminal = is_our_terminal(_STDIN)
    with plain_errors(), ExitStack() as stack:
        # Given back last: no signal may end this process while the terminal is the guest's.
        signals = stack.enter_context(counted_signals(*_SIGNALS))
        sink = Sink("stdio")
        stack.callback(sink.close)
        async with trio.open_nursery() as nursery:
            terminal = _Attached(
                client, process, sink, nursery.cancel_scope, is_terminal=is_terminal
            )
            # From now on: a guest that starts does not answer before its kernel runs.
            nursery.start_soon(terminal.obey_signals, signals)
            try:
                await nursery.start(client.run)
            except ConnectionLostError as lost:
                raise GuestError(
                    tr("the guest {folder} does not answer: {lost}", folder=folder.name, lost=lost),
                    hint=tr(
                        "it may have ended: `p2pcloop logs {folder}` shows what it printed",
                        folder=folder.name,
                    ),
                ) from lost
            terminal.is_connected = True
            if is_terminal:
                if not is_quiet():
                    report(joined("", ["p2pcloop: ", ATTACHED_BRIEF]))
                terminal.set_up = stack.enter_context(guest_keys(_STDIN))
                nursery.start_soon(terminal.send_size)
            nursery.start_soon(terminal.keyboard.read)
            nursery.start_soon(terminal.type_input)
            await terminal.show_output(earlier=is_terminal)
            nursery.cancel_scope.cancel()
    return terminal.ended, terminal.signal


class _Attached:
    """A terminal, or an input and an output, that a guest's console is shown at.

    Attributes:
        ended: whether the guest has ended, or is about to.
        signal: the number of the signal that asked this process to end, or 0.
        is_connected: whether the guest has answered.
        set_up: gives the terminal the settings again that a shell has changed.
        keyboard: reads the input, which is held until the guest shows a prompt, as that of `boot`.
    """

    def __init__(
        self,
        client: ControlClient,
        process: GuestProcess,
        sink: Sink,
        scope: trio.CancelScope,
        *,
        is_terminal: bool,
    ) -> None:
        self._client = client
        self._process = process
        self._sink = sink
        self._scope = scope
        self.ended = False
        self.signal = 0
        self.is_connected = False
        self.set_up: Callable[[], None] = lambda: None
        self._watch = PromptWatch()
        self.keyboard = Keyboard(
            _STDIN, on_command=self._obey if is_terminal else None, commands=ATTACHED
        )

    async def show_output(self, *, earlier: bool) -> None:
        """Write what the guest prints, until it ends or the output is closed.

        Args:
            earlier: write some of what it has printed before, too.
        """
        position = -1
        try:
            now = await self._client.call("console_position")
            begin = 0 if earlier else now["position"]
            while self._sink.is_open:
                answer = await self._client.call("console_output", after=position)
                data: bytes = answer["data"]
                self._watch.take(data)  # also what came before: a prompt may stand there
                await self._sink.write(data[max(0, begin - answer["position"]) :])
                position = answer["position"] + len(data)
        except ConnectionLostError:
            self.ended = True

    async def obey_signals(self, signals: AsyncIterator[int]) -> None:
        """Follow the terminal's size, and leave the guest when this process is to end."""
        async for number in signals:
            if number not in (signal.SIGWINCH, signal.SIGCONT):
                self.signal = number
                self._scope.cancel()
                return
            if number == signal.SIGCONT and is_our_terminal(_STDIN):
                self.set_up()
            await self.send_size()

    async def send_size(self) -> None:
        """Give the guest's console the size of this terminal."""
        if not self.is_connected:
            return
        with suppress(termios.error, P2pcloopError):
            rows, columns = termios.tcgetwinsize(_STDIN)
            if rows and columns:
                await self._client.call("console_size", rows=rows, columns=columns)

    async def type_input(self) -> None:
        """Type what is read from standard input; leave the guest at its end."""
        with suppress(ConnectionLostError):
            now = await self._client.call("console_position")
            await self.keyboard.type_on(self, self._watch, held=not now["prompted"])
            self._scope.cancel()

    async def send(self, data: bytes) -> None:
        """Type `data` on the guest's keyboard."""
        await self._client.call("console_input", data=data)

    def _obey(self, command: Command) -> None:
        match command:
            case "leave":
                self._scope.cancel()
            case "shutdown":
                self._process.signal(signal.SIGTERM)
            case "kill":
                self._process.kill()
            case _:
                report(ATTACHED_HELP)
