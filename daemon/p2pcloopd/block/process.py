"""A block server of one's own: the process that `boot` forks for its guest.

Forked, not started anew: the modules are loaded already, so that it serves a third of a second
earlier. Two pipes hold parent and child together. Over one the child says that it is ready, then
gives its report; its end tells that the child has ended. The other carries nothing: when its end
comes, the parent wants no more, or is gone, and the child makes all durable and ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

import trio

from p2pcloop.cli.report import report_error
from p2pcloop.errors import P2pcloopError
from p2pcloopd.block.server import BlockServerSpec, serve
from p2pcloopd.entry import run

_READY = b"\n"
_RECEIVE_SIZE = 65536


class ChildFailedError(Exception):
    """The child ended with an error, which it has told on stderr itself.

    Attributes:
        exit_code: what it exited with.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the block server ended with exit code {exit_code}")
        self.exit_code = exit_code


class BlockServerProcess:
    """The child that serves one guest; as a context manager, it has ended when it is left."""

    def __init__(self, spec: BlockServerSpec) -> None:
        """Fork; only before trio runs and where there are no threads."""
        self._output, child_output = os.pipe()
        child_lifeline, self._lifeline = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._output)
            os.close(self._lifeline)
            _serve_and_exit(spec, child_output, child_lifeline)
        os.close(child_output)
        os.close(child_lifeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        os.close(self._output)
        self._wait()

    def stop(self) -> None:
        """Have it make all durable and end."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    async def wait_ready(self) -> None:
        """Return when a front end may connect.

        Raises:
            ChildFailedError: it ended first.
        """
        await trio.lowlevel.wait_readable(self._output)
        if os.read(self._output, len(_READY)) != _READY:
            raise ChildFailedError(self._wait())

    async def finish(self) -> dict[str, Any]:
        """Wait until it has ended; return its report.

        Raises:
            ChildFailedError: it failed.
        """
        data = b""
        while True:
            await trio.lowlevel.wait_readable(self._output)
            part = os.read(self._output, _RECEIVE_SIZE)
            if not part:
                break
            data += part
        if exit_code := self._wait():
            raise ChildFailedError(exit_code)
        report: dict[str, Any] = json.loads(data)
        return report

    def _wait(self) -> int:
        """The exit code of the child, which is about to end or has ended."""
        if self._pid:
            _, status = os.waitpid(self._pid, 0)
            self._pid = 0
            self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code


def _serve_and_exit(spec: BlockServerSpec, output: int, lifeline: int) -> NoReturn:
    """The child's whole life. It leaves by `_exit`: nothing of the parent's is its to clean up."""
    exit_code = 1
    try:
        # A session of its own: Ctrl-C in the terminal is for the parent, who shuts the guest down.
        os.setsid()
        stopped: Callable[[], Awaitable[None]] = partial(trio.lowlevel.wait_readable, lifeline)
        report = run(partial(serve, spec, partial(_write_all, output, _READY), stopped))
        _write_all(output, json.dumps(report).encode())
        exit_code = 0
    except P2pcloopError as err:
        exit_code = report_error(err)
    except BaseException:
        import traceback  # noqa: PLC0415  for a bug of ours only

        traceback.print_exc()
    os._exit(exit_code)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
