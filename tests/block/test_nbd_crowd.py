"""How many clients an NBD server has, and how much memory their requests take."""

from __future__ import annotations

from functools import partial

import trio
import trio.testing

from p2pcloopd.block.nbd_crowd import Crowd, Limits
from p2pcloopd.block.nbd_server import serve_exports
from p2pcloopd.block.nbd_waiting import MAX_WAITING_PAYLOAD, Budget, Waiting
from p2pcloopd.netboot.machines import Machines
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.waiting import BOUND

MIB = 1 << 20


def test_clients_are_counted_by_address_and_until_they_have_an_export() -> None:
    crowd = Crowd(Limits(served=3, waiting=1, negotiating=1, of_address=2))
    with crowd.counted("a") as one, crowd.counted("b") as other:
        assert "have not said what they want" in str(crowd.refusal("c"))
        one()
        one()  # told twice, counted once
        other()
        assert crowd.negotiating == 0
        assert crowd.refusal("a") is None
        with crowd.counted("a") as third:
            third()
            assert crowd.refusal("a") == "a has 2 connections"
            assert crowd.refusal("b") is None
            with crowd.counted(""):
                assert crowd.refusal("") == "4 clients are connected"
        assert crowd.refusal("a") is None
    assert crowd.negotiating == 0
    assert crowd.refusal("a") is None


def test_others_are_no_clients() -> None:
    crowd = Crowd(Limits(admits=lambda address: address == "a"))
    assert crowd.refusal("a") is None
    assert crowd.refusal("b") == "b is no client of this server"


async def test_connections_that_say_nothing_take_no_place_from_others() -> None:
    """Those beyond the limit are hung up on at once, not when others leave."""
    machines = Machines("00", MemoryBackend(MemoryDevice(bytes(MIB))), lambda _: None)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    limits = Limits(served=8, waiting=0, of_address=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_exports, machines, [listener], limits=limits))
        port = listener.socket.getsockname()[1]
        mute = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        for stream in mute:
            assert await stream.receive_some(18)
        refused = await trio.open_tcp_stream("127.0.0.1", port)
        assert await refused.receive_some(18) == b""
        await mute.pop().aclose()

        # Its place is free as soon as the server has noticed.
        with trio.fail_after(BOUND):
            while True:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    if await stream.receive_some(18):
                        break
        for stream in (*mute, refused):
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_the_requests_of_all_connections_share_memory() -> None:
    budget = Budget(10 * MIB)
    many = [Waiting(budget) for _ in range(3)]
    many[0].add(6 * MIB)
    many[1].add(4 * MIB)
    assert not many[0].has_room(1) and not many[1].has_room(1)
    # A connection always gets on: with one request.
    assert many[2].has_room(4 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(many[1].room, 4 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        many[0].remove(6 * MIB)  # of another connection
    assert many[1].has_room(4 * MIB)
    assert not many[1].has_room(MAX_WAITING_PAYLOAD)
