"""A connection to QEMU's monitor: commands, their answers, and events (p2pcloop.protocol.qmp).

`qemu.qmp` of PyPI is not used: it runs on asyncio, passes no descriptors, and is longer than this.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import trio

from p2pcloop.errors import FormatError, GuestError
from p2pcloop.protocol.qmp import (
    Greeting,
    MachineEvent,
    QmpMessage,
    QmpReceiver,
    Refusal,
    Return,
    encode_command,
)
from p2pcloop.words import tr

_CHUNK = 1 << 16
_ANSWER_SECONDS = 10.0


class Qmp:
    """The monitor of one QEMU.

    Attributes:
        ready: set once commands can be sent, or QEMU has ended.
        ended: set once QEMU has ended.
    """

    def __init__(
        self, sock: trio.socket.SocketType, on_event: Callable[[MachineEvent], None]
    ) -> None:
        """Connect; nothing is read before `run`.

        Args:
            sock: our end of the monitor's socket.
            on_event: called with each event.
        """
        self.ready = trio.Event()
        self.ended = trio.Event()
        self._socket = sock
        self._on_event = on_event
        self._receiver = QmpReceiver()
        self._waiting: dict[int, _Answer] = {}
        self._number = 0
        self._sending = trio.Lock()

    async def run(self) -> None:
        """Read until QEMU ends.

        Raises:
            FormatError: it sends what is no QMP.
        """
        try:
            while data := await self._receive():
                for message in self._receiver.receive(data):
                    await self._take(message)
        finally:
            self.ended.set()
            self.ready.set()
            for answer in self._waiting.values():
                answer.come.set()

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        fd: int | None = None,
        *,
        seconds: float = _ANSWER_SECONDS,
    ) -> Any:  # noqa: ANN401
        """Carry out a command, and return its result.

        Args:
            name: the command's.
            arguments: as QEMU names them.
            fd: a descriptor that goes with it.
            seconds: how long QEMU may take. It may carry the command out later.

        Raises:
            GuestError: QEMU refuses it, has ended, or does not answer.
        """
        with trio.move_on_after(seconds):
            await self.ready.wait()
            return await self._ask(name, arguments or {}, fd)
        raise GuestError(
            tr(
                "QEMU does not answer the command {name} within {seconds:g} s",
                name=name,
                seconds=seconds,
            )
        )

    async def _ask(self, name: str, arguments: Mapping[str, Any], fd: int | None) -> Any:  # noqa: ANN401
        if self.ended.is_set():
            raise GuestError("QEMU has ended")
        self._number += 1
        number = self._number
        answer = self._waiting[number] = _Answer()
        try:
            await self._send(encode_command(number, name, arguments), fd)
            await answer.come.wait()
        finally:
            del self._waiting[number]
        if isinstance(answer.message, Return):
            return answer.message.value
        why = answer.message.text if isinstance(answer.message, Refusal) else tr("it has ended")
        raise GuestError(
            tr("QEMU does not carry out the command {name}: {why}", name=name, why=why)
        )

    async def _send(self, data: bytes, fd: int | None) -> None:
        async with self._sending:
            try:
                if fd is not None:
                    given = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
                    data = data[await self._socket.sendmsg([data], [given]) :]
                while data:
                    data = data[await self._socket.send(data) :]
            except OSError as err:
                raise GuestError(
                    tr("QEMU takes no commands any more: {why}", why=err.strerror)
                ) from err

    async def _take(self, message: QmpMessage) -> None:
        match message:
            case Greeting():
                with suppress(GuestError):  # it has ended: what it said last is still to be read
                    await self._send(encode_command(0, "qmp_capabilities", {}), None)
            case Return(0, _):
                self.ready.set()
            case Return(number, _) | Refusal(number, _) if number in self._waiting:
                self._waiting[number].message = message
                self._waiting[number].come.set()
            case MachineEvent():
                self._on_event(message)
            case Refusal(None | 0, text):
                raise FormatError(tr("QEMU does not understand this program: {text}", text=text))

    async def _receive(self) -> bytes:
        try:
            return await self._socket.recv(_CHUNK)
        except ConnectionResetError:
            return b""


class _Answer:
    """What a command waits for."""

    def __init__(self) -> None:
        self.come = trio.Event()
        self.message: Return | Refusal | None = None
