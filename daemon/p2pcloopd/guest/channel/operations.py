"""The operations of a guest's control socket that run commands in it (docs/formats/control.md)."""

from __future__ import annotations

import signal
from typing import Any

import trio

from p2pcloop.client.guests import MAX_WAIT_SECONDS
from p2pcloop.errors import FormatError, GuestError, NotHereError
from p2pcloop.formats.packing import Fields
from p2pcloop.protocol.agent import MAX_WORDS
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.guest.channel.channel import START_SECONDS, Channel, GuestCommand, Output

MAX_INPUT = 1 << 16
_MAX_NUMBER = 1 << 62
_SIGNALS = 31


class Commands:
    """The commands that clients of the socket run in the guest."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._running: dict[int, GuestCommand] = {}

    async def perform(self, call: Call, fields: Fields) -> dict[str, Any]:
        """Carry out one operation.

        Raises:
            P2pcloopError: the client gets it.
        """
        if call.op == "exec":
            return await self._run(call, fields)
        command = self._find(fields)
        match call.op:
            case "exec_input":
                data = fields.blob("data", MAX_INPUT)
                fields.end()
                if not data:
                    command.end_input()
                return {"open": bool(data) and await command.send(data)}
            case "exec_output":
                output = _output(command, fields)
                fields.end()
                return {"data": await output.read()}
            case "exec_close":
                output = _output(command, fields)
                fields.end()
                command.close_output(output)
                return {}
            case "exec_signal":
                number = fields.integer("signal", 1, _SIGNALS)
                fields.end()
                command.signal(signal.Signals(number))
                return {}
        raise FormatError(tr("a guest knows no operation `{op}`", op=call.op[:64]))

    async def _run(self, call: Call, fields: Fields) -> dict[str, Any]:
        words = [_word(word) for word in fields.items("command", MAX_WORDS)]
        tools = fields.boolean("tools")
        seconds = fields.integer("wait", 0, MAX_WAIT_SECONDS)
        fields.end()
        with trio.move_on_after(seconds) as waiting:
            await self._channel.wait_open()
        if waiting.cancelled_caught:
            raise GuestError(
                tr("the guest does not take commands yet, after {seconds} s", seconds=seconds),
                hint="`p2pcloop logs` and `p2pcloop ps` tell how far its boot is",
            )
        starting = self._channel.command(
            words, tools=tools, start_seconds=max(seconds, START_SECONDS)
        )
        async with starting as command:
            self._running[command.number] = command
            try:
                await call.emit("started", exec=command.number)
                code = await command.finish()
                for output in (command.stdout, command.stderr):
                    await output.taken.wait()
            finally:
                del self._running[command.number]
        return {"code": code}

    def _find(self, fields: Fields) -> GuestCommand:
        number = fields.integer("exec", 1, _MAX_NUMBER)
        if number not in self._running:
            raise NotHereError(tr("no command {number} runs in this guest", number=number))
        return self._running[number]


def _word(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError("a word of a command is no bytes")
    return value


def _output(command: GuestCommand, fields: Fields) -> Output:
    return command.stderr if fields.boolean("error") else command.stdout
