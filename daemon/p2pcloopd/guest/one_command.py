"""One command in a guest, with the streams of this process: the host's side of command.sh.

Four ports lead into the guest: standard input, output and error, and a control port. The host
writes names of signals to the control port, as lines (`INT`); the guest at last writes `exit CODE`.
By then all that the guest wrote is durable, so it can be killed.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import trio

from p2pcloop.errors import GuestError, StorageError, storage_error
from p2pcloop.words import tr
from p2pcloopd.accepting import accept
from p2pcloopd.guest.console.console import CHUNK, Sink, read_ready
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.lifecycle import run_attended
from p2pcloopd.guest.ports import GuestPorts, MakePorts, Port, PortsDevice
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import GuestSpec

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_NAMES = {"stdout": tr("standard output"), "stderr": tr("standard error")}
_MAX_LINE = 4096


async def run_command(
    listener: socket.socket | None, spec: GuestSpec, events: Events
) -> GuestResult:
    """Run the guest of a command until the command has ended; its exit code is the result's.

    SIGINT, SIGTERM and SIGHUP are handed on to the command. A second one ends the guest.

    Args:
        listener: listens at the spec's `ports_socket`; None where the machine makes the ports.
        spec: of a guest whose first root has a `command_ending`.

    Raises:
        GuestError: the guest ended before the command did, or as for `run_guest`.
        StorageError: its output could not be written, to a full disk perhaps. The command gets
            an error at once, as from a pipe whose reader is gone.
    """
    execution = _Execution()
    if listener is None:
        spec = replace(spec, ports_user=execution)

    async def attend(nursery: trio.Nursery, guest: RunningGuest) -> None:
        if listener is not None:
            nursery.start_soon(execution.serve, listener)
        nursery.start_soon(execution.forward_input)
        nursery.start_soon(execution.report_start, events.prompt)
        await execution.finish()
        guest.kill()

    result = await run_attended(spec, attend, events, interrupt=execution.interrupt)
    if execution.refused is not None:
        raise execution.refused
    if execution.code is not None:
        return replace(result, exit_code=execution.code, reason="done")
    if result.reason == "killed":
        return result
    raise GuestError(
        tr("the guest ended ({reason}) before the command did", reason=result.reason),
        hint="give --console FILE to see what its kernel says",
    )


class _Execution:
    """The ports of one command.

    Attributes:
        code: its exit code, once it has ended.
        refused: the error that kept its output from being written here.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.refused: StorageError | None = None
        self._input = Port("stdin")
        self._control = Port("control", self._take_control)
        self._outputs = [self._output("stdout", _STDOUT), self._output("stderr", _STDERR)]
        self._device: GuestPorts | None = None
        self._said = b""
        self._ended = trio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Serve the device to the one guest that connects."""
        sock = trio.socket.from_stdlib_socket(listener)
        connection = await accept(sock)
        await self.use_ports(partial(PortsDevice, connection=connection))

    async def use_ports(self, make: MakePorts) -> None:
        """Have the ports in the one boot of the guest."""
        self._device = make([self._input, *self._outputs, self._control], 0)
        await self._device.serve()

    async def forward_input(self) -> None:
        """Carry standard input into the guest until its end, or until the guest closes the port."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_unread, nursery.cancel_scope)
            while True:
                try:
                    data = await read_ready(_STDIN, CHUNK)
                except OSError:  # closed, or not readable, or a terminal that is gone
                    data = b""
                if not data:
                    break
                await self._input.send(data)
            self._input.end()
            nursery.cancel_scope.cancel()

    async def report_start(self, on_start: Callable[[], None]) -> None:
        """Call `on_start` once the guest is about to run the command."""
        await self._control.opened.wait()
        on_start()

    async def finish(self) -> None:
        """Return once the command has ended and all that it wrote was written here."""
        await self._ended.wait()
        assert self._device is not None
        for port in self._outputs:
            await self._device.drain(port)

    def interrupt(self, number: int) -> bool:
        """Hand a signal on to the command; False before there is one."""
        if not self._control.opened.is_set():
            return False
        self._control.put(signal.Signals(number).name.removeprefix("SIG").encode() + b"\n")
        return True

    async def _stop_when_unread(self, scope: trio.CancelScope) -> None:
        await self._input.closed.wait()
        scope.cancel()

    def _output(self, name: str, fd: int) -> Port:
        sink = Sink(fd)
        return Port(name, partial(self._write, name, sink))

    async def _write(self, name: str, sink: Sink, data: bytes) -> None:
        refused = False
        try:
            await sink.write(data)
        except OSError as err:  # a full disk, say
            refused = True
            self.refused = storage_error(
                tr("cannot write the command's {names}", names=_NAMES[name]), err
            )
        if refused or not sink.is_open:
            # The command's next write there fails, as to a pipe whose reader is gone.
            assert self._device is not None
            for port in self._outputs:
                if port.name == name:
                    self._device.remove(port)

    async def _take_control(self, data: bytes) -> None:
        self._said = (self._said + data)[-_MAX_LINE:]
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            word, _, code = line.partition(b" ")
            if word == b"exit" and code.isdigit():
                self.code = int(code) & 0xFF
                self._ended.set()
