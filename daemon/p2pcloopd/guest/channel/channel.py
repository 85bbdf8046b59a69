"""The channel to a guest's agent, and the commands that it runs (resources/agent.sh).

The channel is a virtio console device of the guest, whose ports lead to this process. The first one
carries what the agent is told. Each command gets three ports more for its streams, which go when it
has ended.
What the guest sends is only ever output of a command that was asked for here.
"""

from __future__ import annotations

import itertools
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from p2pcloop.errors import BusyError, GuestError
from p2pcloop.protocol.agent import (
    CODE_DIGITS,
    MarkedStream,
    WokenLine,
    check_command,
    encode_end,
    encode_kill,
    encode_run,
    encode_wake,
    new_mark,
)
from p2pcloop.words import tr, tr_n
from p2pcloopd.accepting import accept
from p2pcloopd.guest.ports import GuestPorts, MakePorts, Port, PortsDevice

MAX_COMMANDS = 8
"""Commands that run at once in a guest. Each has three ports, and each port two queues."""

START_SECONDS = 60.0
"""How long the guest may take to offer ports for a command: its kernel does that."""

_HANG_UP_SECONDS = 5.0
"""How long a command may run on after its client has gone; then it is killed."""

_REST_SECONDS = _HANG_UP_SECONDS + 1
"""How long a command may take to end that was just left, where none is to run."""

_HELD = 1 << 16
"""Bytes of an output that wait here for the client; the guest waits with what follows."""

_PORTS = 3


class Output:
    """One output of a command, on its way to the client.

    Attributes:
        port: where the guest writes it.
        ended: set when all of it is here.
        taken: set when the client has seen its end.
        is_dropped: whether it has lost its reader.
        trailer: what came behind the mark at its end; b"" if there was none.
    """

    def __init__(self, mark: bytes) -> None:
        self.ended = trio.Event()
        self.trailer = b""
        self.is_dropped = False
        self.port = Port("", self._receive)
        self._stream = MarkedStream(mark, CODE_DIGITS)
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._changed = trio.Event()
        self.taken = trio.Event()

    async def read(self) -> bytes:
        """Return what has come, once there is something; empty at the end."""
        while not self._pieces and not self.ended.is_set():
            await self._changed.wait()
        data = b"".join(self._pieces)
        if not data:
            self.taken.set()
        self._pieces.clear()
        self._size = 0
        self._report()
        return data

    def drop(self) -> None:
        """Drop all that comes from now on: it has no reader."""
        self.is_dropped = True
        self.taken.set()
        self._pieces.clear()
        self._size = 0
        self._report()

    def end(self) -> None:
        """Record that nothing follows."""
        self._put(self._stream.rest())
        self.ended.set()
        self._report()

    async def _receive(self, data: bytes) -> None:
        self._put(self._stream.feed(data))
        if self._stream.ended:
            self.trailer = self._stream.trailer
            self.end()
        while self._size >= _HELD:
            await self._changed.wait()

    def _put(self, data: bytes) -> None:
        if data and not self.is_dropped:
            self._pieces.append(data)
            self._size += len(data)
            self._report()

    def _report(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class GuestCommand:
    """A command that runs in a guest.

    Attributes:
        number: tells it from others of this guest.
        stdout, stderr: what it prints.
    """

    def __init__(self, number: int, device: GuestPorts, agent: Port) -> None:
        self.number = number
        self._device = device
        self._agent = agent
        self._mark = new_mark()
        self._input = Port("")
        self.stdout = Output(self._mark)
        self.stderr = Output(self._mark)

    async def begin(self, words: Sequence[bytes], *, tools: bool) -> None:
        """Have the agent start it; return once it has its streams."""
        ports = [self._input, self.stdout.port, self.stderr.port]
        first, second, third = await self._device.add(ports)
        numbers = (first, second, third)
        self._agent.put(encode_run(self.number, numbers, self._mark, words, tools=tools))
        for port in ports:
            await port.opened.wait()

    async def send(self, data: bytes) -> bool:
        """Write to its standard input; waits while it does not read.

        Returns:
            Whether it still may read more.
        """
        await self._input.send(data)
        return not self._input.closed.is_set()

    def end_input(self) -> None:
        """End its standard input."""
        self._input.end()

    def close_output(self, output: Output) -> None:
        """Take no more of an output: the command's writes there fail. Of both outputs the last one
        is only dropped: at its end comes the exit code."""
        output.drop()
        other = self.stderr if output is self.stdout else self.stdout
        if not other.is_dropped:
            self._device.remove(output.port)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its process group."""
        self._agent.put(encode_kill(self.number, number.name.removeprefix("SIG")))

    async def finish(self) -> int:
        """Return its exit code once it has ended and all that it wrote is here.

        Raises:
            GuestError: the guest ended, or its agent, before the command did.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_agent)
            for output in (self.stdout, self.stderr):
                nursery.start_soon(self._end_with_port, output)
            for output in (self.stdout, self.stderr):
                await output.ended.wait()
            nursery.cancel_scope.cancel()
        code = self.stderr.trailer or self.stdout.trailer
        if not code.isdigit():
            raise _shut_down()
        return int(code) & 0xFF

    async def end(self) -> None:
        """End it, if it still runs, and take its ports away."""
        for output in (self.stdout, self.stderr):
            output.drop()
        for number in (signal.SIGHUP, signal.SIGKILL):
            if not (self.stderr.ended.is_set() and self.stdout.ended.is_set()):
                self.signal(number)
                with trio.move_on_after(_HANG_UP_SECONDS), suppress(GuestError):
                    await self.finish()
        self._agent.put(encode_end(self.number))
        for port in (self._input, self.stdout.port, self.stderr.port):
            self._device.remove(port)

    async def _end_with_port(self, output: Output) -> None:
        """A port that closes without the mark: what the agent started for it was killed."""
        await self._device.drain(output.port)
        output.end()

    async def _end_with_agent(self) -> None:
        await self._agent.closed.wait()
        for output in (self.stdout, self.stderr):
            output.end()


class _Answer:
    """What the agent answers to `wake`.

    Attributes:
        said: None while there is nothing.
        ended: set when it is here, or none will come.
    """

    def __init__(self, line: WokenLine) -> None:
        self.said: bytes | None = None
        self.ended = trio.Event()
        self._line = line

    def feed(self, data: bytes) -> None:
        """Take what the agent wrote."""
        if self.said is None and (said := self._line.feed(data)) is not None:
            self.said = said
            self.ended.set()

    async def end_with(self, agent: Port) -> None:
        """Expect nothing any more once the agent has ended."""
        await agent.closed.wait()
        self.ended.set()


class Channel:
    """The way to a guest's agent, over all boots of the guest.

    Attributes:
        wake: has the agent open the channel.
    """

    def __init__(self, listener: socket.socket | None, missing: str | None = None) -> None:
        """Make it; nothing is served before `serve`.

        Args:
            listener: listens at the spec's `ports_socket`; None where there is no channel, or where
                the machine calls `use_ports`.
            missing: why the guest can have none, for people.
        """
        self.wake: Callable[[], None] = lambda: None
        self._listener = listener
        self._missing = missing
        self._device: GuestPorts | None = None
        self._agent: Port | None = None
        self._changed = trio.Event()
        self._numbers = itertools.count(1)
        self._running = 0
        self._rests = self._is_held = False
        self._answers: set[_Answer] = set()

    async def serve(self) -> None:
        """Serve the device to the guest, boot after boot."""
        if self._listener is None:
            return
        sock = trio.socket.from_stdlib_socket(self._listener)
        while True:
            connection = await accept(sock)
            await self.use_ports(partial(PortsDevice, connection=connection))

    async def use_ports(self, make: MakePorts) -> None:
        """Have the channel in one boot of the guest, to its end."""
        agent = Port("agent", self._take_answer)
        # The agent of a resumed guest may have half a line of another host.
        agent.put(b"\n")
        device = make([agent], MAX_COMMANDS * _PORTS)
        self._set(device, agent)
        try:
            await device.serve()
        finally:
            self._set(None, None)
            device.close()

    async def wait_open(self) -> None:
        """Return once the agent listens.

        Raises:
            GuestError: the guest has none, or has none any more.
        """
        if self._missing is not None:
            raise GuestError(self._missing)
        self.wake()
        agent: Port | None = None
        while agent is None or agent is not self._agent:  # else the guest boots again
            agent = self._agent
            await (self._changed if agent is None else agent.opened).wait()
        if agent.closed.is_set():
            raise _shut_down()

    @property
    def is_missing(self) -> bool:
        """Whether the guest can have no channel."""
        return self._missing is not None

    def hold(self) -> None:
        """Begin no command until `release`: those that are to be begun wait."""
        self._is_held = True

    def release(self) -> None:
        """Begin commands again."""
        self._is_held = False
        self._report()

    async def wait_gone(self) -> None:
        """Return once the guest has ended, or reboots."""
        while self._device is not None:
            await self._changed.wait()

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Begin no command meanwhile: those that are to be begun wait.

        Raises:
            BusyError: one runs, and goes on. Its streams lead to a program of this machine, and so
                cannot go on elsewhere.
        """
        self._rests = True
        try:
            with trio.move_on_after(_REST_SECONDS):
                while self._running:
                    await self._changed.wait()
            if self._running:
                raise BusyError(
                    tr_n(
                        "{count} command of `exec`, `cp` or --session run in the guest",
                        "{count} commands of `exec`, `cp` or --session run in the guest",
                        self._running,
                    ),
                    hint="wait until it has ended, or end it",
                )
            yield
        finally:
            self._rests = False
            self._report()

    @asynccontextmanager
    async def command(
        self, words: Sequence[bytes], *, tools: bool, start_seconds: float = START_SECONDS
    ) -> AsyncIterator[GuestCommand]:
        """Run a command in the guest; at the end it is ended, if it still runs.

        Args:
            words: a program of the image and its arguments.
            tools: they are a script for busybox's shell and its arguments instead, the first of
                which is $0.
            start_seconds: how long the guest may take to start it.

        Raises:
            UsageError: the words cannot be sent.
            BusyError: too many run already.
            GuestError: the guest does not answer.
        """
        check_command(words)
        await self.wait_open()
        while self._rests or self._is_held:
            await self._changed.wait()
        if self._device is None or self._agent is None:
            raise _shut_down()
        if self._running >= MAX_COMMANDS:
            raise BusyError(
                tr("{max_commands} commands run in the guest already", max_commands=MAX_COMMANDS),
                hint="wait until one has ended",
            )
        command = GuestCommand(next(self._numbers), self._device, self._agent)
        self._running += 1
        try:
            with trio.move_on_after(start_seconds) as starting:
                await command.begin(words, tools=tools)
            if starting.cancelled_caught:
                raise GuestError(
                    tr(
                        "the guest did not start the command within {start_seconds:g} s",
                        start_seconds=start_seconds,
                    ),
                    hint="`p2pcloop ps` tells whether it waits for bytes of its image",
                )
            yield command
        finally:
            with trio.CancelScope(shield=True):
                await command.end()
            self._running -= 1
            self._report()

    async def tell_woken(
        self, now: Callable[[], int], slack: int, seed: bytes, host_name: str
    ) -> bytes:
        """Tell a guest that was resumed what it must know (`encode_wake`); the agent does that
        itself, in a moment, without a command.

        Args:
            now: gives the time once it is told: before that the guest may have to rest.

        Returns:
            What it answers.

        Raises:
            GuestError: the guest has no agent, or has none any more.
        """
        await self.wait_open()
        while self._rests:
            await self._changed.wait()
        agent = self._agent
        if agent is None:
            raise _shut_down()
        mark = new_mark()
        answer = _Answer(WokenLine(mark))
        self._answers.add(answer)
        self._running += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer.end_with, agent)
                agent.put(encode_wake(mark, now(), slack, seed, host_name))
                await answer.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._answers.discard(answer)
            self._running -= 1
            self._report()
        if answer.said is None:
            raise _shut_down()
        return answer.said

    async def _take_answer(self, data: bytes) -> None:
        """Take what the agent writes: it says something only where it was woken."""
        for answer in tuple(self._answers):
            answer.feed(data)

    def _set(self, device: GuestPorts | None, agent: Port | None) -> None:
        self._device, self._agent = device, agent
        self._report()

    def _report(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _shut_down() -> GuestError:
    return GuestError(
        "the guest ends, or has ended its other processes: it runs no commands any more",
        hint="`p2pcloop ps --all` and `p2pcloop logs` tell more",
    )
