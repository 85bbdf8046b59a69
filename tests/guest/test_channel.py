"""Commands in a guest; the device and the agent behind it are played."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloop.errors import BusyError, GuestError
from p2pcloopd.guest.channel import channel as channels
from p2pcloopd.guest.channel.channel import Channel, GuestCommand
from p2pcloopd.guest.ports import Port


@dataclass
class Agent:
    """The guest's side: knows the commands that it was told to run, by their ports."""

    ports: list[Port] = field(default_factory=list)
    removed: list[Port] = field(default_factory=list)
    told: Port = field(default_factory=lambda: Port("agent"))
    answers: bool = True

    async def add(self, ports: Sequence[Port]) -> list[int]:
        self.ports = list(ports)
        if self.answers:
            for port in ports:
                port.record_opened()
        return [1, 2, 3]

    def remove(self, port: Port) -> None:
        self.removed.append(port)
        port.record_removed()

    async def drain(self, port: Port) -> None:
        await port.closed.wait()

    def lines(self) -> list[bytes]:
        """What it was told and has not read yet."""
        lines = b"".join(self.told._pieces).splitlines()
        self.told._pieces.clear()
        return lines

    def mark(self) -> bytes:
        return next(line for line in self.lines() if line.startswith(b"run")).split()[5]

    async def end(self, mark: bytes, code: int) -> None:
        await self.ports[1].deliver(mark + b"%03d" % code)
        await self.ports[2].deliver(mark + b"%03d" % code)


@pytest.fixture
def agent() -> Agent:
    agent = Agent()
    agent.told.record_opened()
    return agent


@pytest.fixture
def channel(agent: Agent) -> Channel:
    channel = Channel(None)
    channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used
    return channel


@asynccontextmanager
async def running(channel: Channel) -> AsyncIterator[GuestCommand]:
    async with channel.command([b"true"], tools=False) as command:
        yield command


async def test_a_command_ends_with_its_output_and_its_code(agent: Agent, channel: Channel) -> None:
    async with running(channel) as command:
        mark = agent.mark()
        await agent.ports[2].deliver(b"complaint")
        await agent.ports[1].deliver(b"some ")
        await agent.ports[1].deliver(b"output" + mark[:4])
        await agent.ports[1].deliver(mark[4:] + b"143" + b"of what it left behind")
        await agent.ports[2].deliver(mark + b"14")
        assert await command.stdout.read() == b"some output"
        assert await command.stdout.read() == b""
        await agent.ports[2].deliver(b"3, and more")
        assert await command.finish() == 143
        assert await command.stderr.read() == b"complaint"
    assert agent.lines() == [b"end 1"]
    assert agent.removed == agent.ports


async def test_a_slow_reader_holds_the_guest_back(agent: Agent, channel: Channel) -> None:
    async with running(channel) as command, trio.open_nursery() as nursery:
        nursery.start_soon(agent.ports[1].deliver, bytes(channels._HELD))
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        assert await command.stdout.read() == bytes(channels._HELD)
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
        await agent.end(agent.mark(), 0)


async def test_one_that_was_left_is_hung_up_and_then_killed(
    agent: Agent, channel: Channel, autojump_clock: MockClock
) -> None:
    async with running(channel):
        agent.lines()
    assert agent.lines() == [b"kill 1 HUP", b"kill 1 KILL", b"end 1"]
    assert agent.removed == agent.ports

    async def obey(mark: bytes) -> None:
        await wait_all_tasks_blocked()
        assert agent.lines() == [b"kill 2 HUP"]
        await agent.end(mark, 129)

    async with trio.open_nursery() as nursery, running(channel):
        nursery.start_soon(obey, agent.mark())
    assert agent.lines() == [b"end 2"]


@pytest.mark.parametrize("lost", ["agent", "command"])
async def test_one_that_dies_with_its_guest_is_an_error(
    agent: Agent, channel: Channel, lost: str
) -> None:
    async with running(channel) as command:
        await agent.ports[1].deliver(b"half of it")
        for port in (agent.told,) if lost == "agent" else agent.ports[1:]:
            port.record_closed()
        with pytest.raises(GuestError, match="runs no commands"):
            await command.finish()
        assert await command.stdout.read() == b"half of it"


async def test_a_guest_that_never_answers_is_told(
    agent: Agent,
    channel: Channel,
    autojump_clock: trio.testing.MockClock,
) -> None:
    agent.answers = False
    with pytest.raises(GuestError, match="did not start the command"):
        async with running(channel):
            pass
    assert agent.removed == agent.ports


async def test_more_commands_than_there_are_ports_for_are_refused(channel: Channel) -> None:
    channel._running = channels.MAX_COMMANDS
    with pytest.raises(BusyError, match="8 commands"):
        async with running(channel):
            pass


async def test_a_guest_without_a_channel_says_why() -> None:
    with pytest.raises(GuestError, match="no module"):
        await Channel(None, "no module").wait_open()


async def test_a_channel_is_waited_for(agent: Agent) -> None:
    channel = Channel(None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.wait_open)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used


@pytest.mark.parametrize("closed", [["stderr"], ["stdout"], ["stderr", "stdout"]])
async def test_the_exit_code_comes_also_where_outputs_are_closed(
    agent: Agent, channel: Channel, closed: list[str]
) -> None:
    async with running(channel) as command:
        for name in closed:
            command.close_output(getattr(command, name))
        assert len(agent.removed) == 1
        await agent.end(agent.mark(), 7)
        assert await command.finish() == 7


async def test_an_agent_that_has_ended_is_told(agent: Agent, channel: Channel) -> None:
    agent.told.record_closed()
    with pytest.raises(GuestError, match="runs no commands"):
        await channel.wait_open()


async def test_a_guest_that_boots_again_is_waited_for(agent: Agent) -> None:
    channel = Channel(None)
    before = Port("agent")
    async with trio.open_nursery() as nursery:
        channel._set(agent, before)  # type: ignore[arg-type]  # it has what is used
        nursery.start_soon(channel.wait_open)
        await wait_all_tasks_blocked()
        channel._set(None, None)
        before.record_removed()
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        channel._set(agent, agent.told)  # type: ignore[arg-type]  # it has what is used


async def test_a_guest_that_goes_while_a_command_starts_is_told(
    agent: Agent, channel: Channel
) -> None:
    agent.answers = False
    async with trio.open_nursery() as nursery:

        async def go() -> None:
            await wait_all_tasks_blocked()
            for port in (agent.told, *agent.ports):
                port.record_removed()

        nursery.start_soon(go)
        async with running(channel) as command:
            with pytest.raises(GuestError, match="runs no commands"):
                await command.finish()
