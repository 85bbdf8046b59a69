"""The DHT, trackers and neighbours: what is found by them, and what is never told to them."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import UsageError
from p2pcloopd.engine.bt import session_dht
from p2pcloopd.engine.bt.session_dht import MAX_SALT, MAX_VALUE, Dht
from p2pcloopd.engine.bt.settings import EngineSettings, session_settings
from p2pcloopd.engine.disk.record import Peer
from p2pcloopd.engine.engine import Engine, open_engine
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes
from tests.support.tracker import Tracker, tracker
from tests.support.waiting import BOUND

NOBODY: Peer = ("127.0.0.99", 9)
MISSING = b"\x01" * 20
"""The info hash of a torrent that no peer has."""

HIDDEN_SECONDS = 2
"""How long what must not happen is given to happen."""


@asynccontextmanager
async def node(
    root: Path, number: int, port: int = 0, tuning: Tuning = TUNING, **settings: object
) -> AsyncIterator[Engine]:
    """An engine that listens on and connects from 127.0.0.`number`."""
    host = f"127.0.0.{number}"
    given = EngineSettings(listen=((host, port),), outgoing=(host,), **settings)  # type: ignore[arg-type]  # of tests
    async with open_engine(given, root / str(number) / "torrents", tuning=tuning) as engine:
        yield engine


@asynccontextmanager
async def dht_nodes(
    root: Path, *numbers: int, tuning: Tuning = TUNING
) -> AsyncIterator[list[Engine]]:
    """A DHT of nodes that know it by the first of them."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            node(root, numbers[0], tuning=tuning, dht=True, dht_nodes=(NOBODY,))
        )
        others = [
            await stack.enter_async_context(
                node(root, number, tuning=tuning, dht=True, dht_nodes=tuple(first.listen_ports))
            )
            for number in numbers[1:]
        ]
        yield [first, *others]


def dht_of(engine: Engine) -> Dht:
    assert engine.dht is not None
    return engine.dht


def heard(engine: Engine) -> list[tuple[bytes, str]]:
    """What others tell a node of the DHT that they have: (info hash, host), as it comes."""
    said: list[tuple[bytes, str]] = []

    def take(alert: lt.alert) -> None:
        if isinstance(alert, lt.dht_announce_alert):
            said.append((alert.info_hash.to_bytes(), alert.ip))

    engine._session.takers.append(take)
    return said


async def never_read(torrent: Torrent) -> None:
    """Fail if a byte of a torrent comes."""
    with trio.move_on_after(HIDDEN_SECONDS) as scope:
        await torrent.read(0, 1)
    assert scope.cancelled_caught


@pytest.fixture
def private_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def announced() -> Iterator[Tracker]:
    with tracker() as running:
        yield running


# --- items of the DHT -----------------------------------------------------------------------


async def test_an_item_is_found_by_others_and_replaced(
    tmp_path: Path, private_key: Ed25519PrivateKey
) -> None:
    public_key = private_key.public_key().public_bytes_raw()
    value = os.urandom(MAX_VALUE)
    with trio.fail_after(BOUND):
        async with dht_nodes(tmp_path, 11, 12, 13, 14) as engines:
            putter, getter = dht_of(engines[1]), dht_of(engines[2])
            assert await getter.get(public_key, b"label") == []
            assert await putter.put(private_key, b"label", value) > 0
            assert await getter.get(public_key, b"label") == [value]
            assert await getter.get(public_key, b"other") == []
            assert await getter.get(bytes(32), b"label") == []
            assert await dht_of(engines[3]).put(private_key, b"label", b"newer") > 0
            assert (await getter.get(public_key, b"label"))[-1] == b"newer"


async def test_an_item_outlives_its_putter_and_is_put_again_after_a_restart(
    tmp_path: Path, private_key: Ed25519PrivateKey
) -> None:
    public_key = private_key.public_key().public_bytes_raw()
    with trio.fail_after(BOUND):
        async with dht_nodes(tmp_path, 21, 22, 23) as engines:
            joined_by = tuple(engines[0].listen_ports)
            async with node(tmp_path, 24, dht=True, dht_nodes=joined_by) as leaving:
                port = leaving.listen_ports[0][1]
                assert await dht_of(leaving).put(private_key, b"label", b"first") > 0
            assert await dht_of(engines[1]).get(public_key, b"label") == [b"first"]
            async with node(tmp_path, 24, port, dht=True, dht_nodes=joined_by) as back:
                assert await dht_of(back).put(private_key, b"label", b"second") > 0
            assert (await dht_of(engines[2]).get(public_key, b"label"))[-1] == b"second"


async def test_gets_and_puts_at_once(tmp_path: Path, private_key: Ed25519PrivateKey) -> None:
    public_key = private_key.public_key().public_bytes_raw()
    salts = [b"%d" % number for number in range(5)]
    found: dict[bytes, list[bytes]] = {}

    async with dht_nodes(tmp_path, 31, 32, 33) as engines:

        async def put(salt: bytes) -> None:
            assert await dht_of(engines[1]).put(private_key, salt, b"value of " + salt) > 0

        async def get(salt: bytes) -> None:
            found[salt] = await dht_of(engines[2]).get(public_key, salt)

        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                for salt in salts:
                    nursery.start_soon(put, salt)
            async with trio.open_nursery() as nursery:
                for salt in salts:
                    nursery.start_soon(get, salt)
                    nursery.start_soon(get, salt)
    assert found == {salt: [b"value of " + salt] for salt in salts}


async def test_where_nobody_answers_a_put_and_a_get_end(
    tmp_path: Path, private_key: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GET_SECONDS", "PUT_SECONDS"):
        monkeypatch.setattr(session_dht, name, 0.3)
    with trio.fail_after(BOUND):
        async with node(tmp_path, 41, dht=True, dht_nodes=(NOBODY,)) as engine:
            assert await dht_of(engine).get(bytes(32), b"label") == []
            assert await dht_of(engine).put(private_key, b"label", b"value") == 0
    assert dht_of(engine)._gets == {}


async def test_what_is_too_long_is_not_put(tmp_path: Path, private_key: Ed25519PrivateKey) -> None:
    async with node(tmp_path, 42, dht=True, dht_nodes=(NOBODY,)) as engine:
        with pytest.raises(UsageError):
            await dht_of(engine).put(private_key, b"label", bytes(MAX_VALUE + 1))
        with pytest.raises(UsageError):
            await dht_of(engine).put(private_key, bytes(MAX_SALT + 1), b"")


async def test_no_packet_leaves_while_the_dht_is_off(
    tmp_path: Path, nodes: Nodes, content: bytes
) -> None:
    """The node that is to be asked is a socket that tells what reaches it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("127.0.0.1", 0))
        asked.setblocking(False)
        where = (asked.getsockname(),)
        async with node(tmp_path, 51, dht=False, dht_nodes=where) as engine:
            assert engine.dht is None
            await engine.seed(nodes.source("51", content).staging, public=True)
            await never_read(await engine.add(MISSING))
        with pytest.raises(BlockingIOError):
            asked.recv(4096)
        async with node(tmp_path, 51, dht=True, dht_nodes=where):
            with trio.fail_after(BOUND):
                await trio.lowlevel.wait_readable(asked)


def test_searches_are_restricted_on_the_internet_only() -> None:
    def restricted(*nodes: Peer) -> set[object]:
        values = session_settings(EngineSettings(dht=True, dht_nodes=nodes))
        return {values["dht_restrict_routing_ips"], values["dht_restrict_search_ips"]}

    assert restricted() == {True}
    assert restricted(("router.example.org", 6881)) == {True}
    assert restricted(("10.0.0.1", 6881), ("8.8.8.8", 6881)) == {True}
    assert restricted(("10.0.0.1", 6881), ("fd00::1", 6881)) == {False}


# --- what is announced, and to whom ---------------------------------------------------------


async def test_only_public_torrents_are_told_to_the_dht(
    tmp_path: Path, nodes: Nodes, content: bytes
) -> None:
    soon = replace(TUNING, peers_stall=1)
    async with dht_nodes(tmp_path, 61, 62, 63, tuning=soon) as (first, seeder, reader):
        said = heard(first)
        hidden = await seeder.seed(nodes.source("62", content[::-1], "hidden").staging)
        shown = await seeder.seed(nodes.source("62", content).staging, public=True)
        with trio.fail_after(BOUND):
            found = await reader.add(shown.info_hash)
            assert await found.read(0, len(content)) == content
        await never_read(await reader.add(hidden.info_hash))
        assert set(said) == {(shown.info_hash, "127.0.0.62")}  # nor is the reader announced
        await seeder.add(hidden.info_hash, public=True)
        with trio.fail_after(BOUND):
            found = await reader.add(hidden.info_hash)
            assert await found.read(0, len(content)) == content[::-1]


async def test_only_public_torrents_are_told_to_a_tracker(
    tmp_path: Path, nodes: Nodes, content: bytes, announced: Tracker
) -> None:
    async with node(tmp_path, 71, announce_trackers=(announced.url,)) as seeder:
        hidden = await seeder.seed(nodes.source("71", content[::-1], "hidden").staging)
        shown = await seeder.seed(nodes.source("71", content).staging, public=True)
        await trio.to_thread.run_sync(announced.wait, lambda one: one.event == "started")
    starts = len(announced.announces)
    async with node(tmp_path, 71, announce_trackers=(announced.url,)) as seeder:
        await seeder.restore()
        again = await trio.to_thread.run_sync(
            announced.wait,
            lambda one: one.event == "started" and one in announced.announces[starts:],
        )
        assert again.info_hash == shown.info_hash
        await never_read(await seeder.add(MISSING))  # time for what must not come
        assert {one.info_hash for one in announced.announces} == {shown.info_hash}
        await seeder.seed(nodes.source("71", content[::-1], "hidden").staging, public=True)
        await trio.to_thread.run_sync(
            announced.wait, lambda one: one.info_hash == hidden.info_hash and not one.left
        )


async def test_a_reader_asks_trackers_when_it_waits_and_only_if_it_may(
    tmp_path: Path, nodes: Nodes, content: bytes, announced: Tracker
) -> None:
    urls = (announced.url,)
    async with node(tmp_path, 81, announce_trackers=urls) as seeder:
        shown = await seeder.seed(nodes.source("81", content).staging, public=True)
        await trio.to_thread.run_sync(announced.wait, lambda one: one.event == "started")
        async with node(tmp_path, 82) as silent:
            await never_read(await silent.add(shown.info_hash, trackers=urls))
        async with node(tmp_path, 83, trackers=True) as reader:
            found = await reader.add(shown.info_hash, trackers=urls)
            await never_read(await reader.add(MISSING))  # of another torrent
            assert {one.left for one in announced.announces} == {0}  # the seeder alone
            with trio.fail_after(BOUND):
                assert await found.read(0, len(content)) == content
        async with node(tmp_path, 82) as silent:  # what was kept is used as the settings say now
            await silent.restore()
            assert len(silent.torrents) == 1
    assert {one.info_hash for one in announced.announces} == {shown.info_hash}


async def test_a_tracker_whose_name_is_never_answered_delays_no_other(
    tmp_path: Path, nodes: Nodes, content: bytes, announced: Tracker
) -> None:
    class DeadNameServer(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object) -> list[Any]:
            return await trio.sleep_forever()

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            return await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(DeadNameServer())
    urls = ("http://dead.example/announce", "udp://dead2.example:1/", announced.url)
    async with node(tmp_path, 81, announce_trackers=urls) as seeder:
        await seeder.seed(nodes.source("81", content).staging, public=True)
        await trio.to_thread.run_sync(announced.wait, lambda one: one.event == "started")


async def test_neighbours_are_tried_for_what_is_missing(
    tmp_path: Path, nodes: Nodes, content: bytes
) -> None:
    async with node(tmp_path, 91) as seeder, node(tmp_path, 92) as reader:
        seeded = await seeder.seed(nodes.source("91", content).staging)
        torrent = await reader.add(seeded.info_hash)
        await never_read(torrent)
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(torrent.read, 0, len(content))
                reader.set_neighbours(seeder.listen_ports)
            assert await torrent.read(0, len(content)) == content
