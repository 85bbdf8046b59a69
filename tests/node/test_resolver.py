"""Names to addresses: none delays another, and a stranger's is never this machine's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pcloopd import resolver
from p2pcloopd.resolver import CONCURRENCY, KEPT_SECONDS, LOOKUP_SECONDS
from tests.support.waiting import BOUND

PUBLIC, OTHER = "8.8.8.8", "1.1.1.1"  # never connected to


class NameServer:
    """What the system answers, instead of a name server.

    Attributes:
        answers: addresses by name; a name that has none is dead: no answer comes.
        asked: the names that were looked up.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.ended = threading.Event()

    def look_up(self, name: str) -> list[str]:
        self.asked.append(name)
        if name not in self.answers:
            self.ended.wait(BOUND)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if not self.answers[name]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.answers[name]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    names = NameServer()
    monkeypatch.setattr(resolver, "_system_addresses", names.look_up)
    yield names
    names.ended.set()


async def addresses(name: str) -> list[str]:
    found: list[Any] = await trio.socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    return [address[0] for *_, address in found]


async def refused(name: str) -> str:
    with pytest.raises(socket.gaierror) as caught:
        await addresses(name)
    return str(caught.value)


async def test_dead_names_delay_no_other(names: NameServer) -> None:
    resolver.install()
    names.answers["alive.example"] = [PUBLIC]
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            for number in range(CONCURRENCY // 2):
                nursery.start_soon(addresses, f"dead{number}.example")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await addresses("alive.example") == [PUBLIC]
            nursery.cancel_scope.cancel()
    names.ended.set()


async def test_a_thread_that_cannot_be_started_is_an_error_of_the_name_alone(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    resolver.install()
    names.answers["a.example"] = [PUBLIC]
    with monkeypatch.context() as patched:
        patched.setattr(trio.to_thread, "run_sync", refuse)
        assert "looked up now: can't start new thread" in await refused("a.example")
    assert await addresses("a.example") == [PUBLIC]


async def test_a_name_is_looked_up_once_at_a_time_and_kept(names: NameServer) -> None:
    resolver.install()
    names.answers["a.example"] = [PUBLIC, OTHER]
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(addresses, "a.example")
    assert await addresses("A.EXAMPLE.") == [PUBLIC, OTHER]
    assert names.asked == ["a.example"]


async def test_an_answer_is_waited_for_in_a_bounded_time(
    names: NameServer, mock_clock: MockClock
) -> None:
    resolver.install()
    before = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            assert "no answer within 12 s" in await refused("dead.example")

        for _ in range(3):
            nursery.start_soon(ask)
        while not names.asked:  # a thread does
            await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(LOOKUP_SECONDS)
    assert trio.current_time() - before == pytest.approx(LOOKUP_SECONDS)
    assert names.asked == ["dead.example"]
    names.ended.set()


@pytest.mark.parametrize(
    ("answer", "used"),
    [
        ([PUBLIC, "192.168.1.1", "127.0.0.1"], [PUBLIC]),
        (["192.168.1.1", "127.0.0.1", "::1"], ["192.168.1.1"]),
        (["10.0.0.1", "fd00::1"], ["10.0.0.1", "fd00::1"]),
    ],
)
async def test_of_several_addresses_the_most_public_are_used(
    names: NameServer, answer: list[str], used: list[str]
) -> None:
    resolver.install()
    names.answers["mixed.example"] = answer
    assert await addresses("mixed.example") == used


@pytest.mark.parametrize(
    "answer",
    [
        "127.0.0.1",
        "127.7.7.7",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
    ],
)
async def test_a_strangers_name_is_not_this_machine(names: NameServer, answer: str) -> None:
    resolver.install()
    names.answers["evil.example"] = [answer]
    told = await refused("evil.example")
    assert answer in told
    assert "only where it is named itself" in told


async def test_this_machines_own_names_are(names: NameServer) -> None:
    resolver.install()
    for name in ("localhost", "a.localhost", socket.gethostname().lower()):
        names.answers[name] = ["127.0.1.1"]
        assert await addresses(name) == ["127.0.1.1"]


async def test_a_name_that_was_public_never_becomes_private(
    names: NameServer, mock_clock: MockClock
) -> None:
    """DNS rebinding."""
    resolver.install()
    names.answers["rebinding.example"] = [PUBLIC]
    assert await addresses("rebinding.example") == [PUBLIC]
    names.answers["rebinding.example"] = ["192.168.1.1"]
    mock_clock.jump(KEPT_SECONDS)
    assert "stood for a public address" in await refused("rebinding.example")
    names.answers["rebinding.example"] = [OTHER]
    assert await addresses("rebinding.example") == [OTHER]


async def test_a_name_that_failed_is_looked_up_anew(names: NameServer) -> None:
    resolver.install()
    names.answers["late.example"] = []
    assert "not known" in await refused("late.example")
    names.answers["late.example"] = ["10.1.1.1"]
    assert await addresses("late.example") == ["10.1.1.1"]


async def test_addresses_are_no_names(names: NameServer) -> None:
    resolver.install()
    for address in ("127.0.0.1", "::1", "192.168.1.1"):
        assert await addresses(address) == [address]
    assert not names.asked
