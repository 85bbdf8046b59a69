"""QEMU's monitor, played by a task."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2pcloop.protocol.qmp import MachineEvent
from p2pcloopd.guest.machine.qmp_client import Qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


class Qemu:
    """Plays QEMU: answers commands, keeps the descriptors that it is given, and sends events.

    Attributes:
        asked: the commands so far.
        refused, silent: commands that are refused, or not answered.
        answers: what is answered to others.
        fds, files: sockets and other descriptors that it was given.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refused: set[str] = set()
        self.silent: set[str] = set()
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.fds: dict[str, trio.socket.SocketType] = {}
        self.files: dict[str, int] = {}
        self._rest = b""

    async def run(self) -> None:
        await self.send(GREETING)
        while True:
            data, given, _, _ = await self.sock.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            if not data:
                return
            fds = [int.from_bytes(value[:4], "little") for _, _, value in given]
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                await self._answer(json.loads(line), fds)

    async def _answer(self, command: dict[str, Any], fds: list[int]) -> None:
        name, arguments = command["execute"], command["arguments"]
        self.asked.append((name, arguments))
        if name == "getfd":
            (fd,) = fds
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                sock = trio.socket.from_stdlib_socket(socket.socket(fileno=fd))
                self.fds[arguments["fdname"]] = sock
            else:
                self.files[arguments["fdname"]] = fd
        if name in self.silent:
            return
        if name in self.refused:
            error = {"class": "GenericError", "desc": "no such device"}
            await self.send({"error": error, "id": command["id"]})
        else:
            answer = self.answers[name](arguments) if name in self.answers else {"did": name}
            await self.send({"return": answer, "id": command["id"]})

    async def send(self, message: dict[str, Any]) -> None:
        await self.sock.send(json.dumps(message).encode() + b"\r\n")

    async def tell(self, name: str, **data: object) -> None:
        await self.send({"event": name, "data": data, "timestamp": {"seconds": 1}})

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


@asynccontextmanager
async def connected(
    on_event: Callable[[MachineEvent], None] = lambda _: None,
) -> AsyncIterator[tuple[Qmp, Qemu]]:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        qmp, qemu = Qmp(ours, on_event), Qemu(theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(qmp.run)
            nursery.start_soon(qemu.run)
            try:
                yield qmp, qemu
            finally:
                for sock in qemu.fds.values():
                    sock.close()
                for fd in qemu.files.values():
                    os.close(fd)
            nursery.cancel_scope.cancel()
