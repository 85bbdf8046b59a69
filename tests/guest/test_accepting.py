"""Connections are taken one after the other, whatever became of those before."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.accepting import CALM, PAUSE, accept, serve


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
        (errno.EHOSTUNREACH, 0.0),
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


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, str]]]:
    """What was told since the last call, each without a traceback."""
    caplog.set_level(logging.INFO)

    def new() -> list[tuple[int, str]]:
        assert not any(record.exc_info for record in caplog.records)
        lines = [(record.levelno, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return lines

    return new


WAITING = (
    logging.WARNING,
    "new clients wait until others have hung up: Too many open files; raise `ulimit -n`",
)
ROOM = (logging.INFO, "there is room for new clients again")


async def test_that_there_is_no_room_is_told_once_and_so_is_its_end(
    listener: trio.socket.SocketType,
    autojump_clock: MockClock,
    told: Callable[[], list[tuple[int, str]]],
) -> None:
    refusing: Any = Refusing(listener)

    async def take(*errors: int) -> list[tuple[int, str]]:
        refusing.errors += errors
        with socket.create_connection(listener.getsockname()):
            (await accept(refusing)).close()
        return told()

    assert await take() == []
    assert await take(errno.EMFILE, errno.EMFILE) == [WAITING]
    assert await take() == [], "one has hung up, and others may wait"
    assert await take(errno.EMFILE) == []
    await trio.sleep(CALM)
    assert await take() == [ROOM]
    assert await take() == []
    assert await take(errno.EMFILE) == [WAITING]


async def test_a_server_without_room_says_so_in_one_line(
    listener: trio.socket.SocketType,
    autojump_clock: MockClock,
    told: Callable[[], list[tuple[int, str]]],
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
    assert told() == [WAITING]
    assert listener.fileno() == -1
