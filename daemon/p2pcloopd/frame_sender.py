"""Sending frames over a stream socket: whole, in their order, and most of them at once."""

from __future__ import annotations

import os
from collections import deque

import trio


class FrameSender:
    """Sends the frames of one connection, as long as `run` runs.

    What the socket takes is sent by the task that has it. Only what it does not take waits for
    `run`. A task for all frames would be woken for each, which costs more than to send it. A frame
    that was begun is sent whole, even if the task that has it is cancelled.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._left: deque[bytes | memoryview] = deque()
        self._some = trio.Event()
        self._none = trio.Event()

    def send_nowait(self, frame: bytes) -> None:
        """Send a frame as soon as the socket takes it, however many wait already."""
        rest = frame if self._left else self._send_now(frame)
        if rest:
            self._left.append(rest)
            self._some.set()

    async def send(self, frame: bytes) -> None:
        """Send a frame, once no other waits. Where that is cancelled, nothing is sent."""
        await trio.lowlevel.checkpoint_if_cancelled()  # `flush` does not look where nothing waits
        await self.flush()
        self.send_nowait(frame)

    async def flush(self) -> None:
        """Return when the socket has taken all frames."""
        while self._left:
            await self._none.wait()

    async def run(self) -> None:
        """Send what the socket did not take at once, for ever.

        Raises:
            trio.BrokenResourceError: the other side hung up.
        """
        while True:
            await self._some.wait()
            while self._left:
                await self._stream.send_all(self._left[0])
                self._left.popleft()
            self._some = trio.Event()
            self._none.set()
            self._none = trio.Event()

    def _send_now(self, frame: bytes) -> bytes | memoryview:
        """Send as much as the socket takes; what is left."""
        try:
            return memoryview(frame)[os.write(self._stream.socket.fileno(), frame) :]
        except OSError:
            return frame  # it is full; or broken, which `run` finds out
