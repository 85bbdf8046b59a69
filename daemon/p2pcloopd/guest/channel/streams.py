"""A command in a guest, with the streams of this process."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import trio

from p2pcloop.client.guests import WAIT_SECONDS
from p2pcloop.errors import StorageError, storage_error
from p2pcloop.store.guests import GuestFolder
from p2pcloop.words import tr
from p2pcloopd.control_client import ConnectionLostError
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.channel.client import RemoteCommand, remote_command
from p2pcloopd.guest.console.console import Sink, read_ready
from p2pcloopd.guest.console.signals import counted_signals

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_NAMES = {_STDOUT: tr("standard output"), _STDERR: tr("standard error")}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INPUT_SIZE = 1 << 16


def execute(
    folder: GuestFolder, words: Sequence[bytes], *, with_input: bool, wait: int = WAIT_SECONDS
) -> int:
    """Run a command in a guest; SIGINT, SIGTERM and SIGHUP are handed on to it, and a second one
    has this process leave it, which ends it.

    Args:
        folder: the guest's.
        words: of the command.
        with_input: hand standard input on to it; else it has none.
        wait: as for `remote_command`.

    Returns:
        Its exit code, or 128 and the number of the signal that had this process leave it.

    Raises:
        StorageError: its output could not be written.
        P2pcloopError: as for `remote_command`.
    """
    return run(lambda: _execute(folder, words, with_input=with_input, wait=wait))


async def _execute(
    folder: GuestFolder, words: Sequence[bytes], *, with_input: bool, wait: int
) -> int:
    with plain_errors(), counted_signals(*_SIGNALS) as signals:
        streams = _Streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.obey_signals, signals, nursery.cancel_scope)
            async with remote_command(folder, words, wait=wait) as command:
                await streams.join(command, with_input=with_input)
            nursery.cancel_scope.cancel()
    if streams.refused is not None:
        raise streams.refused
    return 128 + streams.left if streams.left else streams.code


class _Streams:
    """The streams of this process, and its signals.

    Attributes:
        code: the command's exit code.
        left: the number of the signal that had this process leave the command, or 0.
        refused: the error that kept its output from being written here.
    """

    def __init__(self) -> None:
        self.code = 0
        self.left = 0
        self.refused: StorageError | None = None
        self._command: RemoteCommand | None = None
        self._signalled = False

    async def join(self, command: RemoteCommand, *, with_input: bool) -> None:
        """Be the command's streams until it has ended."""
        self._command = command
        async with trio.open_nursery() as nursery:
            for fd in (_STDOUT, _STDERR):
                nursery.start_soon(self._write, command, fd)
            if with_input:
                nursery.start_soon(self._read, command)
            else:
                await command.end_input()
            self.code = await command.wait()
            nursery.cancel_scope.cancel()

    async def obey_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        """Hand signals on to the command; leave it at the second one, or before there is one."""
        async for number in signals:
            if self._signalled or self._command is None:
                self.left = number
                scope.cancel()
                return
            self._signalled = True
            with suppress(ConnectionLostError):  # the guest has ended: the command's call tells it
                await self._command.signal(number)

    async def _read(self, command: RemoteCommand) -> None:
        while True:
            try:
                data = await read_ready(_STDIN, _INPUT_SIZE)
            except OSError:  # closed, or not readable, or a terminal that is gone
                data = b""
            if not data:
                await command.end_input()
                return
            if not await command.write(data):
                return

    async def _write(self, command: RemoteCommand, fd: int) -> None:
        error = fd == _STDERR
        sink = Sink(fd)
        try:
            while sink.is_open and (data := await command.read(error=error)):
                await sink.write(data)
        except OSError as err:  # a full disk, say
            self.refused = storage_error(
                tr("cannot write the command's {names}", names=_NAMES[fd]), err
            )
            await command.close_output(error=error)
        finally:
            sink.close()
        if not sink.is_open:
            # The command's next write there fails, as to a pipe whose reader is gone.
            await command.close_output(error=error)
