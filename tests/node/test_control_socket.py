"""The control socket over real unix sockets, with operations made for the test."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcloop.client.control_client import ControlClient as CommandClient
from p2pcloop.client.control_client import NotRunningError
from p2pcloop.errors import BusyError, DaemonError, NotHereError, StorageError
from p2pcloop.protocol.control import (
    CONTROL_VERSION,
    MAX_IN_FLIGHT,
    MAX_READ,
    Cancel,
    ControlReceiver,
    Failure,
    Message,
    Reply,
    Request,
    encode,
)
from p2pcloop.store.home import Home
from p2pcloopd import control_client, control_server
from p2pcloopd.control_client import (
    GONE_SECONDS,
    LAST_DELAY,
    ConnectionLostError,
    ControlClient,
    ReconnectingClient,
)
from p2pcloopd.control_server import P2PCLOOPD, Call, ServerWords, open_listener, serve_control
from tests.support.waiting import BOUND

HELLO = encode(Request(0, "hello", {"version": CONTROL_VERSION, "software": "test"}))


class Operations:
    """`echo` gives back its arguments; `wait` waits for `release` and counts who was cancelled."""

    def __init__(self) -> None:
        self.release = trio.Event()
        self.waiting = 0
        self.cancelled = 0
        self.produced = 0
        self._changed = trio.Event()

    async def __call__(self, call: Call) -> dict[str, Any]:
        match call.op:
            case "echo":
                return call.args
            case "wait":
                await self._wait()
                return {}
            case "count":
                for number in range(3):
                    await call.emit("number", number=number)
                return {}
            case "data":
                await call.hold(call.args["length"])
                self.produced += call.args["length"]
                return {"data": bytes(call.args["length"])}
            case "full":
                raise StorageError("disk full", errno=28, hint="make room")
            case "bug":
                raise ZeroDivisionError("oops")
            case "large":
                return {"data": bytes(control_server.MAX_HELD)}
        raise NotHereError(f"no operation {call.op}")

    async def _wait(self) -> None:
        self.waiting += 1
        self._notify()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(BOUND):
            while not condition():
                await self._changed.wait()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="p2p"))
    yield directory / "control.sock"
    shutil.rmtree(directory)


@pytest.fixture
def operations() -> Operations:
    return Operations()


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mode for path in directory.iterdir()}


@asynccontextmanager
async def serving(
    path: Path, operations: Operations, server: ServerWords = P2PCLOOPD
) -> AsyncIterator[None]:
    with open_listener(path) as listener:
        async with trio.open_nursery() as nursery:
            serve = partial(serve_control, listener, operations, server=server)
            await nursery.start(serve)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[ControlClient]:
    client = ControlClient(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield client
        nursery.cancel_scope.cancel()


class Raw:
    """A client without manners: it sends what bytes it is told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._receiver = ControlReceiver()
        self._messages: list[Message] = []

    async def next(self) -> Message | None:
        """The next message, or None where the server has hung up."""
        with trio.fail_after(BOUND):
            while not self._messages:
                try:
                    data = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    return None
                self._messages = self._receiver.receive(data)
        return self._messages.pop(0)


@asynccontextmanager
async def raw(path: Path, *, greet: bool = True) -> AsyncIterator[Raw]:
    async with await trio.open_unix_socket(path) as stream:
        client = Raw(stream)
        if greet:
            await stream.send_all(HELLO)
            assert isinstance(await client.next(), Reply)
        yield client


async def test_the_socket_is_the_users_own(socket_path: Path, operations: Operations) -> None:
    async with serving(socket_path, operations):
        assert modes(socket_path.parent) == {socket_path.name: stat.S_IFSOCK | 0o600}
    assert modes(socket_path.parent) == {}


async def test_a_socket_left_over_is_replaced(socket_path: Path, operations: Operations) -> None:
    left = trio.socket.socket(trio.socket.AF_UNIX)
    await left.bind(str(socket_path))
    left.close()
    async with serving(socket_path, operations), connected(socket_path) as client:
        assert await client.call("echo", a=1) == {"a": 1}


async def test_calls_are_in_flight_together(socket_path: Path, operations: Operations) -> None:
    async with serving(socket_path, operations), connected(socket_path) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client.call, "wait")
            await operations.until(lambda: operations.waiting == 20)
            assert await client.call("echo", data=b"\x00\xff") == {"data": b"\x00\xff"}
            operations.release.set()


async def test_events_come_before_the_reply(socket_path: Path, operations: Operations) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    async with serving(socket_path, operations), connected(socket_path) as client:
        await client.call("count", lambda event, fields: events.append((event, fields)))
    assert events == [("number", {"number": number}) for number in range(3)]


async def test_errors_arrive_as_they_were(socket_path: Path, operations: Operations) -> None:
    async with serving(socket_path, operations), connected(socket_path) as client:
        with pytest.raises(StorageError, match="disk full") as caught:
            await client.call("full")
        assert (caught.value.errno, caught.value.hint) == (28, "make room")
        with pytest.raises(NotHereError):
            await client.call("nothing")
        with pytest.raises(DaemonError, match="ZeroDivisionError: oops"):
            await client.call("bug")
        with pytest.raises(DaemonError, match="too large"):
            await client.call("large")
        assert await client.call("echo") == {}


async def test_a_cancelled_call_is_cancelled_there(
    socket_path: Path, operations: Operations
) -> None:
    async with serving(socket_path, operations), connected(socket_path) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "wait")
            await operations.until(lambda: operations.waiting == 1)
            nursery.cancel_scope.cancel()
        await operations.until(lambda: operations.cancelled == 1)
        assert await client.call("echo", still="here") == {"still": "here"}


async def test_a_client_that_goes_away_cancels_its_requests(
    socket_path: Path, operations: Operations
) -> None:
    async with serving(socket_path, operations):
        async with raw(socket_path) as client:
            for number in range(1, 4):
                await client.stream.send_all(encode(Request(number, "wait")))
            await operations.until(lambda: operations.waiting == 3)
        await operations.until(lambda: operations.cancelled == 3)


async def test_a_request_too_many_is_refused_and_a_cancel_makes_room(
    socket_path: Path, operations: Operations
) -> None:
    async with serving(socket_path, operations), raw(socket_path) as client:
        for number in range(1, MAX_IN_FLIGHT + 1):
            await client.stream.send_all(encode(Request(number, "wait")))
        await client.stream.send_all(encode(Request(9000, "echo")))
        refused = await client.next()
        assert isinstance(refused, Failure)
        assert refused.id == 9000
        assert isinstance(refused.error, BusyError)
        await client.stream.send_all(encode(Cancel(1)) + encode(Request(9001, "echo")))
        assert await client.next() == Reply(9001, {})


async def test_our_client_never_sends_too_many(socket_path: Path, operations: Operations) -> None:
    async with serving(socket_path, operations), connected(socket_path) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_IN_FLIGHT + 50):
                nursery.start_soon(client.call, "wait")
            await operations.until(lambda: operations.waiting == MAX_IN_FLIGHT)
            operations.release.set()


async def test_answers_that_are_not_taken_do_not_pile_up(
    socket_path: Path, operations: Operations
) -> None:
    reads = 3 * control_server.MAX_HELD // MAX_READ
    async with serving(socket_path, operations), raw(socket_path) as client:
        for number in range(1, reads + 1):
            await client.stream.send_all(encode(Request(number, "data", {"length": MAX_READ})))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert operations.produced == control_server.MAX_HELD
        received = [await client.next() for _ in range(reads)]
    assert {each.id for each in received if isinstance(each, Reply)} == set(range(1, reads + 1))


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x02\x91\x00",
        encode(Reply(1, {})),
        encode(Request(5, "wait")) * 2,
    ],
    ids=["too long", "empty", "no msgpack", "no map", "a reply", "an id twice"],
)
async def test_a_bad_frame_drops_that_client_only(
    socket_path: Path, operations: Operations, frame: bytes
) -> None:
    async with serving(socket_path, operations):
        async with connected(socket_path) as good, raw(socket_path) as bad:
            await bad.stream.send_all(frame)
            assert await bad.next() is None
            assert await good.call("echo", a=1) == {"a": 1}


@pytest.mark.parametrize("first", [encode(Request(1, "status")), encode(Cancel(1))])
async def test_who_does_not_greet_is_dropped(
    socket_path: Path, operations: Operations, first: bytes
) -> None:
    async with serving(socket_path, operations), raw(socket_path, greet=False) as client:
        await client.stream.send_all(first)
        assert await client.next() is None


async def test_another_version_is_told_so(socket_path: Path, operations: Operations) -> None:
    async with serving(socket_path, operations), raw(socket_path, greet=False) as client:
        hello = Request(0, "hello", {"version": CONTROL_VERSION + 1, "software": "new"})
        await client.stream.send_all(encode(hello))
        answer = await client.next()
        assert isinstance(answer, Failure)
        assert isinstance(answer.error, DaemonError)
        assert await client.next() is None


async def test_errors_of_a_guests_socket_speak_of_the_guest(
    socket_path: Path, operations: Operations
) -> None:
    words = ServerWords("the guest g1", "`p2pcloop logs g1`", "shut it down")
    async with serving(socket_path, operations, words):
        async with raw(socket_path, greet=False) as other:
            hello = Request(0, "hello", {"version": CONTROL_VERSION + 1, "software": "new"})
            await other.stream.send_all(encode(hello))
            answer = await other.next()
            assert isinstance(answer, Failure)
            assert "the guest g1 of p2pcloop" in str(answer.error)
            assert str(answer.error.hint).startswith("shut it down, and")
        async with raw(socket_path) as client:
            await client.stream.send_all(encode(Request(1, "bug", {})))
            answer = await client.next()
            assert isinstance(answer, Failure)
            assert str(answer.error).startswith("the guest g1 failed at `bug`")
            assert "`p2pcloop logs g1` has more" in str(answer.error.hint)
    guest = ControlClient(socket_path, "the guest g1")
    async with trio.open_nursery() as nursery:
        async with serving(socket_path, operations, words):
            await nursery.start(guest.run)
    with pytest.raises(ConnectionLostError, match="the guest g1 went away"):
        await guest.call("echo")


async def test_calls_fail_when_the_server_goes(socket_path: Path, operations: Operations) -> None:
    lost: list[str] = []

    async def call(client: ControlClient) -> None:
        with pytest.raises(ConnectionLostError):
            await client.call("wait")
        lost.append("wait")

    async with trio.open_nursery() as nursery:
        client = ControlClient(socket_path)
        async with serving(socket_path, operations):
            await nursery.start(client.run)
            nursery.start_soon(call, client)
            await operations.until(lambda: operations.waiting == 1)
    assert lost == ["wait"]
    with pytest.raises(ConnectionLostError):
        await client.call("echo")


async def test_an_answer_is_taken_also_where_the_server_reads_no_more(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "RECEIVE_SIZE", 16)
    ended: list[str] = []

    async def ask(client: ControlClient, op: str, **args: object) -> None:
        try:
            ended.append((await client.call(op, None, **args))["answer"])
        except ConnectionLostError:
            ended.append(f"{op} lost")

    with trio.fail_after(BOUND), open_listener(socket_path) as listener:
        async with trio.open_nursery() as nursery:
            client = ControlClient(socket_path)
            nursery.start_soon(client.run)
            async with await listener.accept() as server:
                await server.receive_some()
                await server.send_all(encode(Reply(0, {})))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask, client, "first")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(partial(ask, client, "second", data=bytes(MAX_READ)))
                await trio.testing.wait_all_tasks_blocked()
                # The second request does not fit, and waits: it fails when this closes.
                await server.send_all(encode(Reply(1, {"answer": "x" * 100})))
    assert sorted(ended) == ["second lost", "x" * 100]


async def test_nobody_there_is_an_error(socket_path: Path) -> None:
    with pytest.raises(ConnectionLostError):
        await ControlClient(socket_path).run()


async def test_a_reconnecting_call_waits_for_the_server_and_outlives_it(
    socket_path: Path, operations: Operations
) -> None:
    results: list[dict[str, Any]] = []
    done = trio.Event()

    async def call(client: ReconnectingClient) -> None:
        results.append(await client.call("wait"))
        done.set()

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            client = ReconnectingClient(socket_path)
            await nursery.start(client.run)
            nursery.start_soon(call, client)
            for _ in range(2):
                async with serving(socket_path, operations):
                    await operations.until(lambda: operations.waiting == 1)
                await operations.until(lambda: operations.waiting == 0)
            assert not done.is_set()
            async with serving(socket_path, operations):
                operations.release.set()
                await done.wait()
                nursery.cancel_scope.cancel()
    assert results == [{}]


async def test_a_call_that_begins_to_wait_says_so_and_the_server_is_looked_for_at_once(
    socket_path: Path, operations: Operations, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.rate == 0
    waits: list[float] = []
    client = ReconnectingClient(socket_path, on_wait=lambda: waits.append(trio.current_time()))
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            await trio.sleep(100)  # it looks once a second by now
            assert waits == []
            async with serving(socket_path, operations):
                begun = trio.current_time()
                await client.call("echo")
                assert waits == [begun]
                assert trio.current_time() - begun < LAST_DELAY / 2
            nursery.cancel_scope.cancel()


async def test_a_server_that_comes_back_is_told_first(
    socket_path: Path, operations: Operations
) -> None:
    """Not the first one: who makes the connection has just told it."""
    told: list[dict[str, Any]] = []

    async def tell(client: ControlClient) -> None:
        told.append(await client.call("echo", number=len(told)))

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            client = ReconnectingClient(socket_path, on_back=tell)
            await nursery.start(client.run)
            for count in range(3):
                async with serving(socket_path, operations):
                    await client.call("echo")
                    assert len(told) == count
            nursery.cancel_scope.cancel()
    assert told == [{"number": 0}, {"number": 1}]


async def test_one_that_says_nothing_to_that_holds_calls_up_for_a_while(
    socket_path: Path, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(client: ControlClient) -> None:
        await client.call("wait")

    monkeypatch.setattr(control_client, "BACK_SECONDS", 0)
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            client = ReconnectingClient(socket_path, on_back=tell)
            await nursery.start(client.run)
            for _ in range(2):
                async with serving(socket_path, operations):
                    assert await client.call("echo", data=b"1") == {"data": b"1"}
            nursery.cancel_scope.cancel()


async def test_a_call_that_waits_for_the_server_says_so_once(
    socket_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.rate == 0
    gone: list[float] = []
    client = ReconnectingClient(socket_path, lambda: gone.append(trio.current_time()))
    begun = trio.current_time()
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            async with trio.open_nursery() as calls:
                for _ in range(3):
                    calls.start_soon(client.call, "echo")
                await trio.sleep(100)
                assert [at - begun for at in gone] == [GONE_SECONDS]
                calls.cancel_scope.cancel()
            nursery.cancel_scope.cancel()


async def test_the_commands_client(socket_path: Path, operations: Operations) -> None:
    home = Home.at(socket_path.parent)

    def use() -> None:
        events: list[tuple[str, dict[str, Any]]] = []
        with CommandClient.connect(home) as client:
            assert client.pid > 0
            assert client.call("echo", data=b"1") == {"data": b"1"}
            client.call("count", lambda event, fields: events.append((event, fields)))
            assert [fields["number"] for _, fields in events] == [0, 1, 2]
            with pytest.raises(StorageError, match="disk full"):
                client.call("full")

    with pytest.raises(NotRunningError):
        CommandClient.connect(home)
    async with serving(socket_path, operations):
        await trio.to_thread.run_sync(use)
