"""Nodes as processes: seeding, resolving, reading, restarts, errors."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.manifest import open_manifest
from p2pcloop.protocol.control import MAX_READ
from p2pcloopd.control_client import ControlClient, ReconnectingClient
from p2pcloopd.control_server import MAX_HELD
from tests.support.programs import Node, Nodes, read_until
from tests.support.waiting import BOUND, wait_until

from .conftest import publish_version

NOBODY = ("127.0.0.1", 9)
"""A peer that is not there: nothing serves the discard port."""


def read_all(node: Node, torrent: bytes, size: int) -> bytes:
    with node.connect() as client:
        answer = client.call("read", torrent=torrent, offset=4096, length=size, heal=False)
    data: bytes = answer["data"]
    return data


def test_a_node_tells_what_it_is(nodes: Nodes) -> None:
    node = nodes.start()
    with node.connect() as client:
        status = client.call("status")
    assert node.process is not None
    assert client.pid == status["pid"] == node.process.pid == node.home.holder()
    assert status["home"] == str(node.home.root)
    assert [address.split(":")[0] for address in status["listen"]] == ["127.0.0.1"]
    assert status["torrents"] == []
    assert stat.S_IMODE(node.home.control_socket.stat().st_mode) == 0o600


def test_stop_ends_it_in_order(nodes: Nodes) -> None:
    node = nodes.start()
    assert node.call("stop") == {}
    assert node.process is not None
    assert node.process.wait(BOUND) == 0
    assert not node.home.control_socket.exists()
    assert node.home.holder() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(nodes: Nodes, number: signal.Signals) -> None:
    node = nodes.start()
    assert node.end(number) == 0
    assert not node.home.control_socket.exists()


def test_an_image_goes_from_node_to_node(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    published = publish_version(publisher, content)
    resolved = reader.call("resolve", ref=published["link"])
    assert resolved["manifest"] == published["manifest"]
    assert (resolved["id"], resolved["name"]) == (published["id"], published["name"])
    assert resolved["peers"] == [list(peer) for peer in parse_link(published["link"]).peers]

    torrent = open_manifest(resolved["manifest"]).manifest.layers[0].torrent
    layout = reader.call("layout", torrent=torrent)
    assert layout["files"] == [["layer/index", 4096], ["layer/pack", len(content)]]
    assert layout["size"] == 4096 + len(content)
    assert read_all(reader, torrent, len(content)) == content
    assert reader.call("resolve", ref=published["name"])["id"] == published["id"]


def test_a_restarted_node_finds_its_peers_again(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    published = publish_version(publisher, content)
    reader.call("resolve", ref=published["link"])
    listened = publisher.call("status")["listen"]
    for node in (publisher, reader):
        node.end(signal.SIGKILL)
        assert node.home.control_socket.exists()
        node.start()
    assert publisher.call("status")["listen"] == listened
    assert read_all(reader, published["torrent"], len(content)) == content


def test_sigkill_at_any_time_loses_nothing_that_was_here(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    published = publish_version(publisher, content)
    torrent = published["torrent"]
    for kill in range(6):
        reader.call("resolve", ref=published["link"])
        offset = kill * 50_000
        with reader.connect() as client:
            client.call("add", torrent=torrent, peers=[], trackers=[], web_seeds=[])
            data = client.call("read", torrent=torrent, offset=offset, length=9000, heal=False)
            assert data["data"] == (b"i" * 4096 + content)[offset : offset + 9000]
        reader.end(signal.SIGKILL)
        reader.start()
        assert reader.call("verify", torrent=torrent)["bad"] == []
    assert reader.call("resolve", ref=published["name"])["id"] == published["id"]
    assert read_all(reader, torrent, len(content)) == content


def test_a_link_without_a_source_leaves_nothing_once_its_clients_are_gone(
    nodes: Nodes, content: bytes
) -> None:
    publisher, reader = nodes.start(), nodes.start("waiting_after = 0.05")
    link = publish_version(publisher, content)["link"]
    publisher.end(signal.SIGTERM)
    with reader.started("info", link) as one, reader.started("info", link) as two:
        for client in (one, two):
            read_until(client, "no peer reachable")
        one.kill()
        one.wait()
        assert len(reader.torrents()) == 1, "the other one waits for it"
        two.kill()
        two.wait()
    wait_until(lambda: not reader.torrents())
    wait_until(lambda: not any(reader.home.torrents.iterdir()), "their files go next")


async def test_a_waiting_read_outlives_its_daemon(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start("waiting_after = 0.05")
    published = publish_version(publisher, content)
    reader.call("resolve", ref=published["link"])
    publisher.end(signal.SIGTERM)
    waiting = trio.Event()
    data: list[bytes] = []

    def on_event(event: str, _fields: dict[str, Any]) -> None:
        assert event == "waiting"
        waiting.set()

    async def read(client: ReconnectingClient) -> None:
        answer = await client.call(
            "read", on_event, torrent=published["torrent"], offset=4096, length=5000, heal=False
        )
        data.append(answer["data"])
        nursery.cancel_scope.cancel()

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            client = ReconnectingClient(reader.home.control_socket)
            await nursery.start(client.run)
            nursery.start_soon(read, client)
            await waiting.wait()
            await trio.to_thread.run_sync(reader.end, signal.SIGKILL)
            await trio.to_thread.run_sync(reader.start)
            await trio.to_thread.run_sync(publisher.start)
    assert data == [content[:5000]]


def test_a_peer_that_is_connected_and_silent_is_told_of(nodes: Nodes) -> None:
    publisher, reader = nodes.start(), nodes.start("waiting_after = 0.05")
    # A peer of which it is not known yet that it is a node is asked for more than is read, which
    # may be all of it on a busy machine: then nothing waits, and another image shows it.
    found = (waits_for_a_silent_peer(publisher, reader, version) for version in range(1, 11))
    event = next(filter(None, found))
    assert event["connected"]
    assert "(connected)" in event["tried"][0]


def waits_for_a_silent_peer(publisher: Node, reader: Node, version: int) -> dict[str, Any] | None:
    """What a read is told that waits for a peer which is stopped; None if it need not wait."""
    content, at = random.Random(version).randbytes(6 << 20), 5 << 20
    published = publish_version(publisher, content, version)
    torrent = published["torrent"]
    reader.call("resolve", ref=published["link"])

    def is_connected() -> bool:
        [found] = [t for t in reader.call("status")["torrents"] if t["info_hash"] == torrent]
        return any(peer["connected"] for peer in found["traffic"]["peers"])

    process = publisher.process
    assert process is not None
    events: list[dict[str, Any]] = []

    def on_event(event: str, fields: dict[str, Any]) -> None:
        assert event == "waiting"
        events.append(fields)
        process.send_signal(signal.SIGCONT)

    words: dict[str, Any] = {"torrent": torrent, "heal": False}
    with reader.connect() as client:
        client.call("read", offset=0, length=4096, **words)
        wait_until(is_connected)  # the bytes may have come by HTTP
        process.send_signal(signal.SIGSTOP)
        try:
            data = client.call("read", on_event, offset=at, length=5000, **words)["data"]
        finally:
            process.send_signal(signal.SIGCONT)
    assert data == content[at - 4096 :][:5000]
    return events[0] if events else None


async def test_reads_of_what_is_absent_leave_room_for_reads_of_what_is_here(
    nodes: Nodes, content: bytes
) -> None:
    publisher, reader = nodes.start(), nodes.start("waiting_after = 0.05")
    published = publish_version(publisher, content)
    torrent = published["torrent"]
    reader.call("resolve", ref=published["link"])
    with reader.connect() as first:
        first.call("read", torrent=torrent, offset=0, length=4096, heal=False)
    publisher.end(signal.SIGTERM)
    filling = MAX_HELD // len(content)
    told: set[int] = set()
    enough = trio.Event()

    async def read_in_vain(client: ControlClient, number: int) -> None:
        def on_event(_event: str, _fields: dict[str, Any]) -> None:
            told.add(number)
            if len(told) == filling:
                enough.set()

        args = {"torrent": torrent, "offset": 4096, "length": len(content), "heal": False}
        await client.call("read", on_event, **args)

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            client = ControlClient(reader.home.control_socket)
            await nursery.start(client.run)
            for number in range(filling + 1):
                nursery.start_soon(read_in_vain, client, number)
            await enough.wait()
            answer = await client.call("read", torrent=torrent, offset=0, length=4096, heal=False)
            assert answer["data"] == b"i" * 4096
            nursery.cancel_scope.cancel()


def test_no_peer_is_told_and_tried_on(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start("waiting_after = 0.05")
    link = parse_link(publish_version(publisher, content)["link"])
    link = replace(link, peers=(NOBODY,), mirrors=())
    events: list[dict[str, Any]] = []

    class EnoughError(Exception):
        pass

    def on_event(event: str, fields: dict[str, Any]) -> None:
        assert event == "waiting"
        events.append(fields)
        if len(events) == 2:
            raise EnoughError

    with reader.connect() as client, pytest.raises(EnoughError):
        client.call("resolve", on_event, ref=str(link))
    assert [fields["peers"] for fields in events] == [["127.0.0.1:9"]] * 2
    assert reader.call("status")["pid"]


def test_fetch_brings_all_and_verify_finds_what_is_wrong(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    published = publish_version(publisher, content)
    torrent = published["torrent"]
    reader.call("resolve", ref=published["link"])
    reader.call("fetch", torrent=torrent)
    [state] = [t for t in reader.call("status")["torrents"] if t["info_hash"] == torrent]
    assert state["have_bytes"] == state["size"] == published["size"]
    pieces = -(-published["size"] // published["piece_length"])
    assert reader.call("verify", torrent=torrent) == {"pieces": pieces, "bad": []}

    with open(reader.home.torrents / torrent.hex() / "data" / "layer" / "pack", "r+b") as pack:
        pack.seek(published["piece_length"])
        pack.write(b"\0" * 10)
    bad = (4096 + published["piece_length"]) // published["piece_length"]
    assert reader.call("verify", torrent=torrent) == {"pieces": pieces, "bad": [bad]}
    assert read_all(reader, torrent, len(content)) == content


def test_a_link_to_another_manifest_is_refused(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    published = publish_version(publisher, content)
    link = replace(parse_link(published["link"]), mirrors=())
    with pytest.raises(MismatchError):
        reader.call("resolve", ref=str(replace(link, manifest_id=b"x" * 32)))
    other = replace(link.name, label="other")
    with pytest.raises(MismatchError):
        reader.call("resolve", ref=str(replace(link, name=other)))
    with pytest.raises(FormatError):
        reader.call("resolve", ref=str(replace(link, manifest_torrent=published["torrent"])))
    with pytest.raises(NotHereError):
        reader.call("resolve", ref=str(other))
    assert reader.call("resolve", ref=published["link"])["id"] == published["id"]


def test_publishing_the_same_again_changes_nothing(nodes: Nodes, content: bytes) -> None:
    node = nodes.start()
    first = publish_version(node, content)
    assert publish_version(node, content) == first
    assert len(node.call("status")["torrents"]) == 2
    assert list(node.home.tmp.iterdir()) == []


def test_a_name_points_to_the_newest_version(nodes: Nodes, content: bytes) -> None:
    publisher, reader = nodes.start(), nodes.start()
    old, new = publish_version(publisher, content), publish_version(publisher, content, version=2)
    assert old["name"] == new["name"]
    reader.call("resolve", ref=old["link"])
    reader.call("resolve", ref=new["link"])
    assert reader.call("resolve", ref=old["name"])["id"] == new["id"]
    with pytest.raises(MismatchError, match="a name never goes back"):
        reader.call("resolve", ref=old["link"])
    assert reader.call("resolve", ref=old["name"])["id"] == new["id"]


def test_a_manifest_of_layers_that_are_not_here_is_refused(nodes: Nodes, content: bytes) -> None:
    publisher, other = nodes.start(), nodes.start()
    with pytest.raises(NotHereError):
        other.call("seed_manifest", manifest=publish_version(publisher, content)["manifest"])


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("nothing", {}),
        ("status", {"more": 1}),
        ("read", {}),
        ("read", {"torrent": b"t", "offset": 0, "length": 1, "heal": False}),
        ("read", {"torrent": b"t" * 20, "offset": -1, "length": 1, "heal": False}),
        ("read", {"torrent": b"t" * 20, "offset": 0, "length": MAX_READ + 1, "heal": False}),
        ("read", {"torrent": b"t" * 20, "offset": 0, "length": 1, "heal": 0}),
        ("read", {"torrent": b"t" * 20, "offset": 0, "length": 1, "heal": False}),
        ("layout", {"torrent": "t" * 20}),
        ("add", {"torrent": b"t" * 20, "peers": [["a b", 1]], "trackers": [], "web_seeds": []}),
        ("add", {"torrent": b"t" * 20, "peers": [["h", 0]], "trackers": [], "web_seeds": []}),
        ("add", {"torrent": b"t" * 20, "peers": [[1, 1]], "trackers": [], "web_seeds": []}),
        ("add", {"torrent": b"t" * 20, "peers": [], "trackers": ["file:///x"], "web_seeds": []}),
        ("seed", {"staging": "/etc"}),
        ("seed", {"staging": "../tmp"}),
        ("seed_manifest", {"manifest": b"\x80"}),
        ("resolve", {"ref": "magnet:?xt=urn:btih:00"}),
        ("resolve", {"ref": "@x/y"}),
    ],
)
def test_bad_arguments_are_an_error_and_the_connection_stays(
    idle_node: Node, op: str, args: dict[str, Any]
) -> None:
    with idle_node.connect() as client:
        with pytest.raises((UsageError, FormatError, NotHereError)):
            client.call(op, **args)
        assert client.call("status")["torrents"] == []


def test_seed_takes_only_what_lies_in_tmp(idle_node: Node) -> None:
    tmp = idle_node.home.tmp
    (tmp / "link").symlink_to("/etc")
    (tmp / "file").touch()
    (tmp / "empty").mkdir()
    (tmp / "deep" / "data").mkdir(parents=True)
    for name in ("link", "file", "empty", "deep/data", "..", "absent", "deep"):
        with pytest.raises(P2pcloopError):
            idle_node.call("seed", staging=f"{tmp}/{name}")
    assert idle_node.call("status")["torrents"] == []


def test_a_client_without_manners_is_dropped_alone(idle_node: Node) -> None:
    with idle_node.connect() as good, socket.socket(socket.AF_UNIX) as bad:
        bad.settimeout(20)
        bad.connect(bytes(idle_node.home.control_socket))
        with contextlib.suppress(BrokenPipeError):
            bad.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert bad.recv(100) == b""
        assert good.call("status")["torrents"] == []


@pytest.fixture(scope="module")
def idle_node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.start()
