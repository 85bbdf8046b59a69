"""A resumed guest is woken through its agent, which is played."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pcloop.errors import BusyError, GuestError
from p2pcloopd.guest.channel import waking as wakings
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.channel.waking import Waking, WokenCard, wake_up
from p2pcloopd.guest.ports import Port
from p2pcloopd.guest.system.addresses import USER

SUSPENDED = 1_000_000.0
RESUMED = SUSPENDED + 3600.25


class Agent:
    """The guest's side: what it reads, and what it prints."""

    def __init__(self, said: bytes, code: int = 0) -> None:
        self.told = Port("agent")
        self.words: list[bytes] = []
        self.input = b""
        self._said = said
        self._code = code

    async def add(self, ports: Sequence[Port]) -> list[int]:
        for port in ports:
            port.record_opened()
        self._ports = list(ports)
        return [2, 3, 4]

    async def run(self) -> None:
        """Run one command, to the end of its input."""
        while not self.told._pieces:
            await self.told._changed.wait()
        lines = b"".join(self.told._pieces).split(b"\n")
        begun = next(line for line in lines if line.startswith(b"run")).split()
        self.words = lines[-1 - int(begun[-1]) : -1]
        while data := await self._ports[0].take(1 << 16):
            self.input += data
        mark = begun[5] + b"%03d" % self._code
        await self._ports[1].deliver(self._said + mark)
        await self._ports[2].deliver(mark)

    def remove(self, port: Port) -> None:
        port.record_removed()

    async def drain(self, port: Port) -> None:
        await port.closed.wait()


START = [0.0]
"""Trio's time at the resume."""


def unix_time() -> float:
    return RESUMED + trio.current_time() - START[0]


async def woken(agent: Agent, waking: Waking) -> list[str]:
    """What the user is told."""
    START[0] = trio.current_time()
    told: list[str] = []
    channel = Channel(None)
    channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
    agent.told.record_opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await wake_up(channel, waking, told.append, unix_time)
    return told


@pytest.mark.usefixtures("autojump_clock")
async def test_the_clock_is_told_at_once_and_at_the_beginning_of_a_second() -> None:
    agent = Agent(b"reseeds yes\nbehind 3600\nconnections 0\n")
    told = await woken(agent, Waking(SUSPENDED))
    assert told == ["goes on where it was suspended 1:00:00 ago; its clock was set"]
    seed, now, second = agent.input.splitlines()
    assert (len(seed), int(now), int(second)) == (128, 1_003_600, 1_003_601)
    assert unix_time() == pytest.approx(1_003_601, abs=0.1), "it was sent when that second began"
    assert agent.words[1:] == [b"wake", *[b""] * 7]


@pytest.mark.usefixtures("autojump_clock")
async def test_two_guests_of_one_state_get_random_bytes_of_their_own() -> None:
    agents = [Agent(b"reseeds yes\nbehind 1\n") for _ in range(2)]
    for agent in agents:
        await woken(agent, Waking(SUSPENDED))
    first, second = (agent.input.split()[0] for agent in agents)
    assert first != second


@pytest.mark.usefixtures("autojump_clock")
async def test_the_card_and_the_name_are_those_of_this_machine() -> None:
    agent = Agent(b"reseeds yes\nbehind 1\nconnections 2\n")
    card = WokenCard("eth0", "02:70:32:70:00:05", 15900, USER)
    told = await woken(agent, Waking(SUSPENDED, card, "web"))
    assert agent.words[2:] == [
        *(b"eth0", b"02:70:32:70:00:05", b"10.0.2.15/24", b"10.0.2.2", b"10.0.2.3", b"15900"),
        b"web",
    ]
    assert told[1] == "has 2 TCP connections of before, which lead nowhere now"


def test_a_card_of_a_foreign_network_is_left_to_dhcp() -> None:
    card = WokenCard("eth0", "", 1500, None)
    assert Waking(SUSPENDED, card).words() == [b"eth0", b"", b"", b"", b"", b"1500", b""]


@pytest.mark.usefixtures("autojump_clock")
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"reseeds no\nbehind 1\n", "a kernel that does not know that it was resumed"),
        (b"", "did not do all"),
        (b"behind " + b"9" * 400 + b"\nconnections -\n\xff\n", "did not do all"),
    ],
)
async def test_what_could_not_be_healed_is_told(said: bytes, told: str) -> None:
    assert told in " ".join(await woken(Agent(said), Waking(SUSPENDED)))


async def test_a_guest_without_an_agent_is_told() -> None:
    told: list[str] = []
    await wake_up(Channel(None, "no module"), Waking(SUSPENDED), told.append, lambda: RESUMED)
    assert len(told) == 1
    assert "no agent" in told[0]
    assert "date -s" in told[0]


@pytest.mark.usefixtures("autojump_clock")
async def test_an_agent_that_takes_its_time_is_told_and_waited_for() -> None:
    told: list[str] = []
    agent = Agent(b"reseeds yes\nbehind 1\n")
    channel = Channel(None)
    START[0] = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake_up, channel, Waking(SUSPENDED), told.append, unix_time)
        await trio.sleep(wakings.PATIENCE + 1)
        assert "has not answered yet" in told[0]
        channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
        agent.told.record_opened()
        nursery.start_soon(agent.run)
    assert told[1].endswith("its clock was set")


@pytest.mark.usefixtures("autojump_clock")
async def test_a_channel_rests_while_no_command_runs() -> None:
    agent = Agent(b"")
    channel = Channel(None)
    channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
    agent.told.record_opened()

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


@pytest.mark.usefixtures("autojump_clock")
async def test_a_command_that_waits_for_a_guest_that_goes_is_told() -> None:
    agent = Agent(b"")
    channel = Channel(None)
    channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
    agent.told.record_opened()

    async def run() -> None:
        with pytest.raises(GuestError, match="runs no commands"):
            async with channel.command([b"true"], tools=False):
                pass

    async with trio.open_nursery() as nursery:
        async with channel.resting():
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            channel._set(None, None)


@pytest.mark.usefixtures("autojump_clock")
async def test_a_command_that_was_left_is_waited_for() -> None:
    agent = Agent(b"")
    channel = Channel(None)
    channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
    agent.told.record_opened()

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
