"""A resumed guest is woken through its agent, which is played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloop.errors import BusyError, GuestError
from p2pcloopd.guest.answer import SLOWNESS, UNHEARD_SECONDS, Answer
from p2pcloopd.guest.channel import waking as wakings
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.channel.waking import Waking, Woken, WokenCard, wake_up
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.ports import Port
from p2pcloopd.guest.report import Outcome
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.addresses import USER
from p2pcloopd.guest.with_block_server import _WAKE_SECONDS, _served
from tests.guest.test_identity import machine

SUSPENDED = 1_000_000.0
RESUMED = SUSPENDED + 3600.25


class Agent:
    """The guest's side: what it is told, and what it answers.

    Attributes:
        woken: the words of each `wake`, behind the mark.
    """

    def __init__(self, said: bytes = b"1 yes 0") -> None:
        self.told = Port("agent")
        self.words: list[bytes] = []
        self.woken: list[list[bytes]] = []
        self._said = said
        self._ports: list[Port] = []

    async def add(self, ports: Sequence[Port]) -> list[int]:
        for port in ports:
            port.record_opened()
        self._ports = list(ports)
        return [2, 3, 4]

    async def serve(self, channel: Channel) -> None:
        """Answer what wakes it, and run commands, each to the end of its input."""
        while lines := (await self.told.take(1 << 16)).split(b"\n"):
            head = lines[0].split()
            if head[0] == b"wake":
                self.woken.append(head[2:])
                await channel._take_answer(b"\nwoken %s %s\n" % (head[1], self._said))
            elif head[0] == b"run":
                await self.end_command(lines)

    async def end_command(self, lines: Sequence[bytes]) -> None:
        begun = lines[0].split()
        self.words = list(lines[1:-1])
        while await self._ports[0].take(1 << 16):
            pass
        await self._ports[1].deliver(begun[5] + b"000")
        await self._ports[2].deliver(begun[5] + b"000")

    async def run(self) -> None:
        """Run one command."""
        while not (line := await self.told.take(1 << 16)).startswith(b"run"):
            pass
        await self.end_command(line.split(b"\n"))

    def remove(self, port: Port) -> None:
        port.record_removed()

    async def drain(self, port: Port) -> None:
        await port.closed.wait()


ANSWERED = 2 * UNHEARD_SECONDS * (1 + SLOWNESS)
START = [0.0]
"""Trio's time at the resume."""


def unix_time() -> float:
    return RESUMED + trio.current_time() - START[0]


def connect(channel: Channel, agent: Agent) -> None:
    """Let an agent listen."""
    channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
    agent.told.record_opened()


def channel_to(agent: Agent) -> Channel:
    """A channel to an agent that listens."""
    channel = Channel(None)
    connect(channel, agent)
    return channel


async def woken(agent: Agent, waking: Waking) -> list[str]:
    """What the user is told."""
    START[0] = trio.current_time()
    told: list[str] = []
    channel = channel_to(agent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, channel)
        await wake_up(channel, waking, told.append, unix_time)
        nursery.cancel_scope.cancel()
    return told


async def test_the_clock_is_told_at_once_and_at_the_beginning_of_a_second(
    autojump_clock: MockClock,
) -> None:
    agent = Agent(b"3600 yes 0")
    told = await woken(agent, Waking(SUSPENDED))
    assert told == ["goes on where it was suspended 1:00:00 ago; its clock was set"]
    first, second = agent.woken
    assert (first[:2], len(first[2]), first[3]) == ([b"1003600", b"1"], 128, b"-")
    assert second == [b"1003601", b"0", b"-", b"-"]
    assert unix_time() == pytest.approx(1_003_601, abs=0.1), "it was sent when that second began"
    assert not agent.words, "no command is begun: its ports and processes cost half of a resume"


async def test_two_guests_of_one_state_get_random_bytes_of_their_own(
    autojump_clock: MockClock,
) -> None:
    agents = [Agent() for _ in range(2)]
    for agent in agents:
        await woken(agent, Waking(SUSPENDED))
    first, second = (agent.woken[0][2] for agent in agents)
    assert first != second


async def test_the_card_and_the_name_are_those_of_this_machine(autojump_clock: MockClock) -> None:
    agent = Agent(b"1 yes 2")
    card = WokenCard("eth0", "02:70:32:70:00:05", 15900, USER)
    told = await woken(agent, Waking(SUSPENDED, card, "web"))
    assert agent.woken[0][3] == b"web"
    assert agent.words[1:] == [
        *(b"wake", b"eth0", b"02:70:32:70:00:05"),
        *(b"10.0.2.15/24", b"10.0.2.2", b"10.0.2.3", b"15900"),
    ]
    assert told[1] == "has 2 TCP connections of before, which lead nowhere now"


def test_a_card_of_a_foreign_network_is_left_to_dhcp() -> None:
    card = WokenCard("eth0", "", 1500, None)
    assert card.words() == [b"eth0", b"", b"", b"", b"", b"1500"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"1 no 0", "a kernel that does not know that it was resumed"),
        (b"", "did not do all"),
        (b"9" * 400 + b" - \xff", "did not do all"),
    ],
)
async def test_what_could_not_be_healed_is_told(
    said: bytes, told: str, autojump_clock: MockClock
) -> None:
    assert told in " ".join(await woken(Agent(said), Waking(SUSPENDED)))


async def test_an_agent_that_ends_before_it_answers_is_told(autojump_clock: MockClock) -> None:
    agent = Agent()
    channel = channel_to(agent)
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake_up, channel, Waking(SUSPENDED), told.append, lambda: RESUMED)
        await wait_all_tasks_blocked()
        agent.told.record_removed()
    assert "could not be woken" in told[0]


async def test_a_guest_without_an_agent_is_told() -> None:
    told: list[str] = []
    await wake_up(Channel(None, "no module"), Waking(SUSPENDED), told.append, lambda: RESUMED)
    assert len(told) == 1
    assert "no agent" in told[0]
    assert "date -s" in told[0]


async def test_an_agent_that_takes_its_time_is_told_and_waited_for(
    autojump_clock: MockClock,
) -> None:
    told: list[str] = []
    agent = Agent()
    channel = Channel(None)
    START[0] = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake_up, channel, Waking(SUSPENDED), told.append, unix_time)
        await trio.sleep(wakings.PATIENCE + 1)
        assert "has not answered yet" in told[0]
        connect(channel, agent)
        nursery.start_soon(agent.serve, channel)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert told[1].endswith("its clock was set")


async def test_commands_wait_until_a_guest_is_woken(autojump_clock: MockClock) -> None:
    agent = Agent(b"3600 no 0")
    channel = channel_to(agent)
    found: list[Woken] = []
    waking = Waking(SUSPENDED, due=partial(trio.sleep, 3), found=found.append)
    START[0] = trio.current_time()
    ran: list[float] = []

    async def run() -> None:
        async with channel.command([b"true"], tools=False) as command:
            assert len(agent.woken) == 1, "what it is told is before what a command says"
            command.end_input()
            await command.finish()
            ran.append(trio.current_time() - START[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, channel)
        nursery.start_soon(wake_up, channel, waking, lambda _: None, unix_time)
        await wait_all_tasks_blocked()
        nursery.start_soon(run)
        await trio.sleep(2.9)
        assert not (agent.woken or agent.words or found)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert ran == [pytest.approx(3)]
    assert found == [Woken(3600, reseeds=False, connections=0)]


def going_on(
    waking: Waking, answer: Answer, arrived: Callable[[], Awaitable[None]], outcome: Outcome
) -> tuple[Resume, Waking]:
    """A guest that is to go on; `arrived` returns when what it touches then is here."""
    resume = Resume(machine(), Path("/memory"), AsyncMock())
    spec = GuestSpec(Path("/disk"), resume=resume, waking=waking)
    block = SimpleNamespace(
        arrived=arrived, enough=AsyncMock(), device_state=None, copy_overlay=None
    )
    ready = SimpleNamespace(spec=spec, disk=SimpleNamespace(memory=object()), outcome=outcome)
    served = _served(cast("Any", ready), cast("Any", block), answer)
    assert served.resume is not None
    assert served.waking is not None
    return served.resume, served.waking


@pytest.mark.parametrize("late", [False, True])
async def test_a_guest_is_woken_once_what_it_touches_then_is_here(
    autojump_clock: MockClock, *, late: bool
) -> None:
    answer, told = Answer(), Waking(SUSPENDED, late=late)
    resume, waking = going_on(told, answer, trio.lowlevel.checkpoint, Outcome(0.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waking.due)
        await trio.sleep(100)  # it is held
        assert nursery.child_tasks
        await resume.ready()
        resume.gone_on.set()
        begun = trio.current_time()
        if late:
            await trio.sleep(2 * UNHEARD_SECONDS)  # it was asked, on a busy machine
            assert nursery.child_tasks
            answer.hear()
    assert trio.current_time() - begun == pytest.approx(ANSWERED if late else 0)


async def test_a_guest_is_woken_even_if_what_it_touches_then_does_not_come(
    autojump_clock: MockClock,
) -> None:
    outcome = Outcome(0.0)
    resume, waking = going_on(Waking(SUSPENDED), Answer(), trio.sleep_forever, outcome)
    resume.gone_on.set()
    begun = trio.current_time()
    await waking.due()
    assert trio.current_time() - begun == pytest.approx(_WAKE_SECONDS)
    waking.found(Woken(1, reseeds=False, connections=0))
    assert outcome.woken is not None
    assert not outcome.reseeds


async def test_a_channel_rests_while_no_command_runs(autojump_clock: MockClock) -> None:
    agent = Agent()
    channel = channel_to(agent)

    async def run() -> None:
        async with channel.command([b"true"], tools=False) as command:
            command.end_input()
            with pytest.raises(BusyError, match="1 command of"):
                async with channel.resting():
                    pass
            nursery.start_soon(agent.run)
            assert await command.finish() == 0

    async with trio.open_nursery() as nursery:
        async with channel.resting():
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            assert not agent.told._pieces


async def test_a_command_that_waits_for_a_guest_that_goes_is_told(
    autojump_clock: MockClock,
) -> None:
    agent = Agent()
    channel = channel_to(agent)

    async def run() -> None:
        with pytest.raises(GuestError, match="runs no commands"):
            async with channel.command([b"true"], tools=False):
                pass

    async with trio.open_nursery() as nursery:
        async with channel.resting():
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            channel._set(None, None)


async def test_a_command_that_was_left_is_waited_for(autojump_clock: MockClock) -> None:
    agent = Agent()
    channel = channel_to(agent)

    async def leave() -> None:
        async with channel.command([b"true"], tools=False) as command:
            command.end_input()
            await trio.sleep(1)
            await agent.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        async with channel.resting():
            assert not nursery.child_tasks


class Mute(Agent):
    """An agent of before, which does not know the word."""

    async def serve(self, _: Channel) -> None:
        while await self.told.take(1 << 16):
            pass


async def test_an_agent_that_never_answers_is_not_waited_for_for_ever(
    autojump_clock: MockClock,
) -> None:
    """Its guest could not be suspended any more, and nobody was told."""
    agent = Mute()
    told: list[str] = []
    channel = channel_to(agent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, channel)
        await wake_up(channel, Waking(SUSPENDED), told.append, unix_time)
        async with channel.resting():
            pass
        nursery.cancel_scope.cancel()
    assert "has not answered within 180 s" in told[0]


async def test_a_guest_that_is_captured_is_told_nothing(autojump_clock: MockClock) -> None:
    """It went on later with the time of before; and two who woke it got one answer."""
    agent = Agent()
    channel = channel_to(agent)
    answers: list[bytes] = []

    async def tell() -> None:
        answers.append(await channel.tell_woken(lambda: int(trio.current_time()), 0, b"", ""))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, channel)
        async with channel.resting(), trio.open_nursery() as telling:
            START[0] = trio.current_time()
            telling.start_soon(tell)
            telling.start_soon(tell)
            await trio.sleep(100)
            assert not agent.woken
            telling.cancel_scope.cancel()
        async with channel.resting():
            for _ in range(2):
                nursery.start_soon(tell)
            await trio.sleep(100)
            assert not agent.woken
        while len(answers) < 2:
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [int(words[0]) - int(START[0]) for words in agent.woken] == [200, 200]
