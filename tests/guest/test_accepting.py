"""Connections are taken one after the other, whatever became of those before."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.accepting import PAUSE, accept, serve


@pytest.fixture
def listener() -> Iterator[trio.socket.SocketType]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield trio.socket.from_stdlib_socket(made)


class Refusing:
    """A listener that refuses first, as the kernel does, and is one then."""

    def __init__(self, listener: trio.socket.SocketType, *errors: int) -> None:
        self.listener = listener
        self.errors = list(errors)

    async def accept(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return await self.listener.accept()

    def close(self) -> None:
        self.listener.close()


@pytest.mark.parametrize(
    ("number", "pause"),
    [
        (errno.ECONNABORTED, 0.0),
        (errno.EMFILE, PAUSE),
        (errno.ENFILE, PAUSE),
        (errno.ENOMEM, PAUSE),
    ],
)
async def test_one_that_cannot_be_taken_ends_nothing(
    listener: trio.socket.SocketType, number: int, pause: float, autojump_clock: MockClock
) -> None:
    begun = trio.current_time()
    with socket.create_connection(listener.getsockname()) as client:
        refusing: Any = Refusing(listener, number, number)
        with await accept(refusing) as taken:
            assert taken.getpeername() == client.getsockname()
    assert trio.current_time() - begun == pytest.approx(2 * pause)


async def test_a_listener_that_is_of_no_use_is_told(listener: trio.socket.SocketType) -> None:
    refusing: Any = Refusing(listener, errno.EINVAL)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        await accept(refusing)


async def test_a_server_without_room_says_so_in_one_line_now_and_then(
    listener: trio.socket.SocketType,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    served: Any = trio.SocketListener(listener)
    served.socket = Refusing(listener, errno.EMFILE, errno.ENFILE)
    begun = trio.current_time()
    with socket.create_connection(listener.getsockname()) as client:
        async with trio.open_nursery() as nursery:

            async def handle(stream: trio.SocketStream) -> None:
                await stream.send_all(b"here")
                nursery.cancel_scope.cancel()

            await nursery.start(serve, handle, [served])
        assert client.recv(5) == b"here"
        assert client.recv(5) == b"", "it is closed"
    assert trio.current_time() - begun == pytest.approx(2 * PAUSE)
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [
        (logging.WARNING, None)
    ] * 2
    assert listener.fileno() == -1
