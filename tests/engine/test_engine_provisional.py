"""Provisional ranges: bytes of exact ranges are here, and become pieces in idle time."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pcloop.store import provisional_log
from p2pcloop.store.provisional_log import ProvisionalLog
from p2pcloopd.engine.fetch import provisional
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.provisional import Provisional
from p2pcloopd.engine.fetch.tuning import TUNING
from tests.support.engines import Nodes
from tests.support.fake_servers import RangeServer
from tests.support.waiting import BOUND, until

PIECE = 16384


def on_disk(directory: Path) -> list[tuple[int, int]]:
    """The ranges in the log. The one that p2pcloopd has open is not touched."""
    with tempfile.TemporaryDirectory() as copy:
        if (directory / "parts").exists():
            shutil.copy(directory / "parts", copy)
        return ProvisionalLog(Path(copy)).ranges


SOON = replace(TUNING, complete_idle=0.05, complete_quiet=0.05)
"""Pieces are completed as soon as no reader waits."""


@pytest.mark.parametrize("same", [True, False], ids=["of the torrent", "of another"])
async def test_pieces_come_from_whoever_is_at_hand_and_never_while_a_reader_waits(
    nodes: Nodes, content: bytes, same: bool
) -> None:
    async with nodes.open("2") as partial, nodes.open("3", tuning=SOON) as reader:
        async with nodes.open("1") as seeder:
            seeded = await seeder.seed(nodes.source("1", content).staging)
            half = await partial.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                await half.read(0, 60 * PIECE)
                await half.save()
        directory = nodes.directory("3", seeded.info_hash)
        torrent = await reader.add(seeded.info_hash, peers=partial.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            torrent.completion.hurry()  # it was published: peers are asked for whole pieces
            waited_for = torrent if same else await reader.add(b"t" * 20)
            async with trio.open_nursery() as nursery:
                # No peer has it: this reader waits.
                nursery.start_soon(waited_for.read, 100 * PIECE, 1)
                await trio.testing.wait_all_tasks_blocked()
                kept = [(0, 100), (20 * PIECE - 1, 2), (110 * PIECE, 10), (30 * PIECE, 3 * PIECE)]
                for offset, length in kept:
                    torrent.store.provisional.keep(offset, content[offset : offset + length])
                for piece in range(40, 50):
                    assert await torrent.read(piece * PIECE, 1) == content[piece * PIECE :][:1]
                await torrent.save()
                assert torrent.have_bytes == 10 * PIECE
                await until(lambda: on_disk(directory) == sorted(kept))
                nursery.cancel_scope.cancel()
            # What no peer has stays provisional, and holds up nothing.
            await until(lambda: on_disk(directory) == [(110 * PIECE, 10)])
            assert torrent.have_bytes == (10 + 1 + 2 + 3) * PIECE
            assert not torrent.peers.wanted
            assert (
                await torrent.reads.read_provisional(110 * PIECE, 10) == content[110 * PIECE :][:10]
            )


async def test_pieces_are_completed_once_nobody_reads_or_it_was_published(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2", tuning=SOON) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            torrent.store.provisional.keep(5, b"x")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert torrent.have_bytes == 0
            torrent.completion.hurry()
            await until(lambda: torrent.have_bytes == PIECE)


async def test_ranges_are_written_when_no_reader_waits_or_they_are_many_or_the_node_stops(
    nodes: Nodes, content: bytes
) -> None:
    tuning = replace(TUNING, write_bytes=1000, write_after=3600)
    async with nodes.open("2", tuning=tuning) as reader:
        torrent = await reader.add(b"t" * 20)
        directory = nodes.directory("2", torrent.info_hash)
        keep = torrent.store.provisional.keep
        with trio.fail_after(BOUND):
            with reader.demand.waiting():
                keep(0, content[:600])
                await trio.testing.wait_all_tasks_blocked(2 * TUNING.write_quiet)
                assert on_disk(directory) == []
                keep(1000, content[1000:1400])
                await until(lambda: on_disk(directory) == [(0, 600), (1000, 400)])
                await torrent.store.provisional.flush()  # what is on the disk counts no more
                keep(2000, b"x")
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert len(on_disk(directory)) == 2
            await until(lambda: len(on_disk(directory)) == 3)
            with reader.demand.waiting():
                keep(2500, b"z")
                await torrent.store.provisional.flush()
                assert len(on_disk(directory)) == 4
                await torrent.store.provisional.flush()
                keep(3000, b"y")
                assert await torrent.reads.read_provisional(3000, 1) == b"y"
                await trio.testing.wait_all_tasks_blocked(0.05)
    assert on_disk(directory) == [(0, 600), (1000, 400), (2000, 1), (2500, 1), (3000, 1)]


async def test_a_range_that_lies_outside_is_dropped(nodes: Nodes, content: bytes) -> None:
    """It was never compared with anything: who gave it may have told anything."""
    async with nodes.open("1") as seeder, nodes.open("2", tuning=SOON) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        directory = nodes.directory("2", seeded.info_hash)
        torrent.store.provisional.keep(len(content) - 10, b"eleven byte")
        torrent.store.provisional.keep(5, b"x")
        with trio.fail_after(BOUND):
            torrent.completion.hurry()
            await torrent.metadata()
            await until(lambda: not torrent.store.provisional.ranges)
            await torrent.store.provisional.flush()
        assert not (directory / "parts").exists()
        assert torrent.have_bytes == PIECE


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
async def test_what_lies_between_is_asked_of_a_server_and_what_is_wrong_again(
    nodes: Nodes, content: bytes, wrong: bool
) -> None:
    asked: list[tuple[int, int]] = []

    async def ask(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        await trio.lowlevel.checkpoint()
        return content[offset : offset + length]

    async with nodes.open("1") as seeder, nodes.open("2", tuning=SOON) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        torrent.servers = RangeServer(ask)
        at = 3 * PIECE + 1000
        part = content[at : at + PIECE]
        torrent.store.provisional.keep(at, part[:-1] + b"w" if wrong else part)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            await until(lambda: torrent.have_bytes == 2 * PIECE)
            await until(lambda: not torrent.store.provisional.ranges)
            assert await torrent.read(at, PIECE) == part
        rest = [(3 * PIECE, 1000), (at + PIECE, PIECE - 1000)]
        assert asked == ([*rest, (at, PIECE)] if wrong else rest)
        assert sum(peer.received for peer in torrent.traffic().peers) == 0


async def test_bytes_of_pieces_and_of_ranges_are_read_as_one(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2", tuning=SOON) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.read(PIECE, PIECE)
            torrent.store.provisional.keep(PIECE - 100, content[PIECE - 100 :][:100])
            torrent.store.provisional.keep(2 * PIECE, content[2 * PIECE :][:50])
            torrent.store.provisional.keep(2 * PIECE + 50, content[2 * PIECE + 50 :][:50])
            for at, size in ((PIECE - 100, PIECE + 200), (PIECE - 1, 2), (2 * PIECE + 10, 80)):
                found = await torrent.reads.read_provisional(at, size)
                assert found == content[at : at + size]
            for at, size in ((PIECE - 101, 2), (2 * PIECE + 10, 91), (PIECE, 10), (0, 1)):
                assert await torrent.reads.read_provisional(at, size) is None


class Machine(RuleBasedStateMachine):
    """Ranges kept and dropped while they are written, read and lost on the disk, in any order."""

    SIZE = 1000

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="p2pl-"))
        self.content = bytes(n % 251 for n in range(self.SIZE))
        self.steps: list[tuple[str, int, int]] = []
        self.model: dict[int, int] = {}

    def teardown(self) -> None:
        try:
            trio.run(self._play)
        finally:
            shutil.rmtree(self.directory)

    @rule(
        what=st.sampled_from(["keep", "keep", "keep", "drop", "flush", "read", "let go", "reopen"]),
        at=st.integers(0, SIZE - 1),
        length=st.integers(1, 120),
    )
    def step(self, what: str, at: int, length: int) -> None:
        self.steps.append((what, at, min(length, self.SIZE - at)))

    async def _play(self) -> None:
        here: set[int] = set()
        kept = Provisional(self.directory, Demand())
        for what, at, length in self.steps:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept.flush)  # beside whatever happens
                if what in ("flush", "let go"):
                    await trio.lowlevel.checkpoint()
                match what:
                    case "keep":
                        kept.keep(at, self.content[at : at + length])
                        here.update(range(at, at + length))
                    case "drop":
                        for start, size in kept.overlapping(at, length):
                            here.difference_update(range(start, start + size))
                        kept.drop(at, length)
                    case "read":
                        data = await kept.read(at, length)
                        whole = here.issuperset(range(at, at + length))
                        assert data == (self.content[at : at + length] if whole else None)
                assert kept.size == len(here)
                assert sum(size for _, size in kept.ranges) == len(here)
            if what == "reopen":
                await kept.flush()
                kept = Provisional(self.directory, Demand())
                assert kept.size == len(here)
        await kept.flush()
        found = {byte for at, size in on_disk(self.directory) for byte in range(at, at + size)}
        assert found == here
        for at, size in kept.ranges:
            assert await kept.read(at, size) == self.content[at : at + size]

    @invariant()
    def nothing(self) -> None:
        """All is looked at in `_play`."""


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


async def test_ranges_beyond_the_room_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisional, "MAX_BYTES", 10)
    kept = Provisional(tmp_path, Demand())
    kept.keep(0, b"12345678")
    kept.keep(100, b"123")
    kept.keep(100, b"12")
    assert (kept.ranges, kept.room) == ([(0, 8), (100, 2)], 0)


async def test_a_disk_that_refuses_costs_nothing_that_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*_: object) -> int:
        raise OSError(28, "no room")

    kept = Provisional(tmp_path, Demand(), tuning=replace(TUNING, unwritten=10))
    with monkeypatch.context() as patch:
        patch.setattr(provisional_log, "_write", refuse)
        kept.keep(0, b"12345678")
        await kept.flush()
        assert await kept.read(0, 8) == b"12345678"
        kept.keep(100, b"123")  # now it is too much: the oldest goes
        await kept.flush()
        assert kept.ranges == [(100, 3)]
    await kept.flush()
    assert Provisional(tmp_path, Demand()).ranges == [(100, 3)]
