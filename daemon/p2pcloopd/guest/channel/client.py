"""The client's side of a command in a guest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from p2pcloop.client.guests import WAIT_SECONDS
from p2pcloop.client.terminal import notify
from p2pcloop.errors import GuestError, NotHereError
from p2pcloop.store.guests import GuestFolder
from p2pcloop.words import tr
from p2pcloopd.control_client import ConnectionLostError, ControlClient

_PATIENCE = 5.0
"""A wait of this many seconds is told."""


class RemoteCommand:
    """A command in the guest at the other end of a socket."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._number = 0
        self._started = trio.Event()
        self._done = trio.Event()
        self._code = 0

    async def wait(self) -> int:
        """Return its exit code, once it has ended and both outputs were read to their ends."""
        await self._done.wait()
        return self._code

    async def write(self, data: bytes) -> bool:
        """Write to its standard input; waits while it does not read.

        Args:
            data: 1 byte to 64 KiB.

        Returns:
            Whether it still may read more.
        """
        answer = await self._call("exec_input", data=data)
        return answer is not None and bool(answer["open"])

    async def end_input(self) -> None:
        """End its standard input."""
        await self._call("exec_input", data=b"")

    async def read(self, *, error: bool) -> bytes:
        """Return what it has printed next; empty at the end.

        Args:
            error: of standard error, not standard output.
        """
        answer = await self._call("exec_output", error=error)
        return b"" if answer is None else bytes(answer["data"])

    async def close_output(self, *, error: bool) -> None:
        """Read an output no more: the command's writes there fail."""
        await self._call("exec_close", error=error)

    async def signal(self, number: int) -> None:
        """Send it a signal."""
        await self._call("exec_signal", signal=number)

    async def run(self, words: Sequence[bytes], *, tools: bool, wait: int) -> None:
        """Have the guest run it, to its end."""
        answer = await self._client.call(
            "exec", self._take, command=list(words), tools=tools, wait=wait
        )
        self._code = int(answer["code"])
        self._done.set()

    async def wait_started(self) -> None:
        """Return once it has started."""
        await self._started.wait()

    def _take(self, event: str, fields: dict[str, Any]) -> None:
        if event == "started":
            self._number = int(fields["exec"])
            self._started.set()

    async def _call(
        self,
        op: str,
        **args: Any,  # noqa: ANN401  what the protocol can carry
    ) -> dict[str, Any] | None:
        """An operation on the command; None if it has ended meanwhile."""
        try:
            return await self._client.call(op, None, exec=self._number, **args)
        except NotHereError:
            return None


@asynccontextmanager
async def remote_command(
    folder: GuestFolder, words: Sequence[bytes], *, tools: bool = False, wait: int = WAIT_SECONDS
) -> AsyncIterator[RemoteCommand]:
    """Run a command in a guest; if the block is left before its end, the guest ends it.

    Args:
        folder: the guest's.
        words, tools: as for `Channel.command`.
        wait: how many seconds a guest that boots is waited for, `MAX_WAIT_SECONDS` at most.

    Raises:
        GuestError: the guest has no channel, or ended before the command did.
        P2pcloopError: as for `Channel.command`.
    """
    client = ControlClient(folder.socket_path)
    command = RemoteCommand(client)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            nursery.start_soon(partial(command.run, words, tools=tools, wait=wait))
            with trio.move_on_after(_PATIENCE) as patience:
                await command.wait_started()
            if patience.cancelled_caught:
                notify(
                    tr(
                        "p2pcloop: waits for the guest {folder} ({wait} s at most)",
                        folder=folder.name,
                        wait=wait,
                    )
                )
                await command.wait_started()
            yield command
            nursery.cancel_scope.cancel()
    except* ConnectionLostError as lost:
        raise GuestError(
            tr("the guest {folder} has ended, and the command with it", folder=folder.name),
            hint=tr("`p2pcloop logs {folder}` shows what it printed", folder=folder.name),
        ) from lost.exceptions[0]
