"""Replies that gather in one buffer and go out whole."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from p2pcloopd.block.nbd_sender import BATCH_SIZE, MAX_KEPT_BATCH, ReplySender
from p2pcloopd.block.nbd_transport import PlainTransport

Pair = tuple[socket.socket, trio.SocketStream]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The sender's socket and the client's stream."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def receive(stream: trio.SocketStream, length: int) -> bytes:
    received = b""
    while len(received) < length:
        received += await stream.receive_some(length - len(received))
    return received


def never() -> None:
    raise AssertionError("the client is there")


async def test_gathered_replies_go_out_together(pair: Pair) -> None:
    sender = ReplySender(PlainTransport(pair[0]), never)
    await sender.add(b"one")
    room = await sender.reserve(8)
    room[:3] = b"two"
    sender.commit(3)
    await sender.reserve(100)
    await sender.add(b"three")
    with trio.move_on_after(0), pytest.raises(trio.Cancelled):
        await pair[1].receive_some()
    await sender.send_batch()
    assert await receive(pair[1], 11) == b"onetwothree"


async def test_batch_is_sent_when_it_is_full(pair: Pair) -> None:
    sender = ReplySender(PlainTransport(pair[0]), never)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.add, b"a" * BATCH_SIZE)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sender.add, b"b")
        assert await receive(pair[1], BATCH_SIZE) == b"a" * BATCH_SIZE
    await sender.send_batch()
    assert await receive(pair[1], 1) == b"b"


@pytest.mark.parametrize(
    ("size", "kept"),
    [(MAX_KEPT_BATCH, MAX_KEPT_BATCH), (MAX_KEPT_BATCH + 1, BATCH_SIZE)],
)
async def test_only_a_small_buffer_is_kept(pair: Pair, size: int, kept: int) -> None:
    sender = ReplySender(PlainTransport(pair[0]), never)
    await sender.reserve(size)
    await sender.send_batch()
    assert len(sender._batch) == kept


async def test_replies_of_several_tasks_are_not_mixed(pair: Pair) -> None:
    sender = ReplySender(PlainTransport(pair[0]), never)
    replies = [bytes([n]) * 1_000_000 for n in range(4)]
    async with trio.open_nursery() as nursery:
        for reply in replies:
            nursery.start_soon(sender.send, reply)
        received = {await receive(pair[1], 1_000_000) for _ in replies}
    assert received == set(replies)


async def test_loss_of_the_client_is_told_once(pair: Pair) -> None:
    told: list[bool] = []
    sender = ReplySender(PlainTransport(pair[0]), lambda: told.append(True))
    await pair[1].aclose()
    for _ in range(3):
        await sender.send(b"reply")
    assert told == [True]


async def test_nothing_is_sent_after_stop(pair: Pair) -> None:
    sender = ReplySender(PlainTransport(pair[0]), never)
    sender.stop()
    await sender.send(b"reply")
    pair[0].shutdown(socket.SHUT_WR)
    assert await pair[1].receive_some() == b""
