"""Nodes that read from mirrors: static web servers, other nodes, and some that misbehave."""

from __future__ import annotations

import http.client
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.client.control_client import ControlClient
from p2pcloop.formats.link import Link, parse_link, parse_peer
from p2pcloop.formats.manifest import LayerRef, Manifest, sign_manifest
from p2pcloop.formats.mirror import (
    ManifestPath,
    MetainfoPath,
    RecordPath,
    build_metainfo,
    layer_parts,
    layer_torrent_name,
)
from p2pcloop.formats.record import Record, sign_record
from p2pcloop.store.provisional_log import kept_ranges
from tests.support.ports import free_port
from tests.support.programs import NO_HEDGE, Node, Nodes
from tests.support.static_server import Fault, misbehaving, nginx
from tests.support.waiting import BOUND, wait_until

from .conftest import KEY, publish_version

INDEX = b"i" * 4096
LAYER_ID = bytes(range(32))
CHUNK = (len(INDEX) + 100_000, 5000)


@dataclass(frozen=True)
class Published:
    """An image of one layer on a node, and its files as a mirror has them."""

    node: Node
    link: Link
    layer: LayerRef
    content: bytes
    directory: Path

    @property
    def url(self) -> str:
        return self.link.mirrors[0]

    def chunk(self) -> bytes:
        return self.content[CHUNK[0] : sum(CHUNK)]


def publish(node: Node, pack: bytes, directory: Path) -> Published:
    """Seed an image of one layer, with its record, and write the mirror of it."""
    name = layer_torrent_name(LAYER_ID)
    seeded = node.call("seed", staging=str(node.stage({"index": INDEX, "pack": pack}, name)))
    layer = LayerRef(
        LAYER_ID, seeded["torrent"], len(INDEX), 512, len(pack), seeded["piece_length"]
    )
    manifest = Manifest(KEY.public_key().public_bytes_raw(), "image", 1, 0, 4096, (layer,))
    data = sign_manifest(manifest, KEY)
    answer = node.call("seed_manifest", manifest=data)
    record = sign_record(
        Record(manifest.key, "image", 1, 0, answer["id"], answer["manifest_torrent"]), KEY
    )
    node.call("seed_record", record=record)
    info = (node.home.torrents / layer.torrent.hex() / "torrent").read_bytes()[7:-1]
    files = {
        RecordPath(manifest.name): record,
        ManifestPath(answer["id"]): data,
        MetainfoPath(layer.torrent): build_metainfo(info, ["http://example.org/data/"]),
    }
    content = INDEX + pack
    [(index, _, _), (packed, _, _)] = layer_parts(layer, 0, len(content))
    for path, data in (*files.items(), (index, INDEX), (packed, pack)):
        where = directory / str(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(data)
    return Published(node, parse_link(answer["link"]), layer, content, directory)


@pytest.fixture
def published(nodes: Nodes, content: bytes, tmp_path: Path) -> Published:
    return publish(nodes.start(), content, tmp_path / "m")


def link_to(published: Published, *mirrors: str, peers: bool = False, seeds: bool = False) -> str:
    return str(
        replace(
            published.link,
            mirrors=mirrors,
            peers=published.link.peers if peers else (),
            web_seeds=tuple(f"{base}data/" for base in mirrors) if seeds else (),
        )
    )


def read(node: Node, published: Published, at: int, size: int, heal: bool = False) -> bytes:
    torrent = published.layer.torrent
    data: bytes = node.call("read", torrent=torrent, offset=at, length=size, heal=heal)["data"]
    return data


def state(node: Node, published: Published) -> dict[str, Any]:
    torrents = node.call("status")["torrents"]
    [found] = [each for each in torrents if each["info_hash"] == published.layer.torrent]
    return dict(found)


def kept_parts(node: Node, published: Published) -> list[tuple[int, int]]:
    """The provisional ranges on the disk."""
    return kept_ranges(node.home.torrents / published.layer.torrent.hex())


def mirror_state(node: Node, base: str) -> dict[str, Any]:
    [found] = [each for each in node.call("status")["mirrors"] if each["base"] == base]
    return dict(found)


def test_the_first_parts_come_alone_and_the_metadata_after_the_first_chunk(
    nodes: Nodes, published: Published
) -> None:
    reader = nodes.start(tuning={"first_patience": BOUND, "metadata_late": BOUND})
    with nginx(published.directory) as web:
        reader.call("resolve", ref=link_to(published, web.url, seeds=True))
        assert read(reader, published, 0, 512) == INDEX[:512]
        assert read(reader, published, 512, 3584) == INDEX[512:]
        assert state(reader, published)["name"] is None
        assert read(reader, published, *CHUNK) == published.chunk()
        wait_until(lambda: state(reader, published)["name"])
        asked = [(each.path.rpartition("/")[2], each.range) for each in web.requests()]
        assert asked[1:] == [
            ("index", "bytes=0-511"),
            ("index", "bytes=512-4095"),
            ("pack", "bytes=100000-104999"),
            (f"{published.layer.torrent.hex()}.torrent", ""),
        ]
        # Where all of a piece came, it is verified, and stays.
        assert read(reader, published, 0, len(published.content)) == published.content
        wait_until(lambda: state(reader, published)["have_bytes"] == len(published.content))
        status = reader.call("status")
        assert mirror_state(reader, web.url)["received"] > 5000 + 4096
        assert status["received"] > len(published.content) + 5000 + 4096


def test_a_node_serves_as_mirror_of_what_it_has(nodes: Nodes, published: Published) -> None:
    reader, other = nodes.start(), nodes.start()
    reader.call("resolve", ref=link_to(published, published.url))
    assert read(reader, published, *CHUNK) == published.chunk()
    [served] = published.node.call("status")["http"]["listen"]
    assert published.url == f"http://{served}/"
    assert published.node.call("status")["http"]["sent"] > CHUNK[1]

    # Another has a part of it only, and its peers: what it lacks comes from elsewhere.
    part = nodes.start(tuning={"interest_linger": 0})  # nothing beside what is read
    part.call("resolve", ref=link_to(published, peers=True))
    assert read(part, published, *CHUNK) == published.chunk()
    wait_until(lambda: 0 < state(part, published)["have_bytes"] < len(published.content))
    wait_until(lambda: read_over_http(part, published, *CHUNK) == published.chunk())
    assert read_over_http(part, published, 0, 100) is None
    [partial] = part.call("status")["http"]["listen"]
    bases = (f"http://{partial}/", published.url)
    other.call("resolve", ref=link_to(published, *bases))
    assert read(other, published, 0, 512) == INDEX[:512]
    assert read(other, published, *CHUNK) == published.chunk()


def read_over_http(node: Node, published: Published, at: int, size: int) -> bytes | None:
    """Bytes of the layer, or None where the node answers 404."""
    [(path, start, length)] = layer_parts(published.layer, at, size)
    status, body = ask(node, f"/{path}", headers={"Range": f"bytes={start}-{start + length - 1}"})
    assert status in (206, 404)
    return body if status == 206 else None


def ask(
    node: Node, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    [address] = node.call("status")["http"]["listen"]
    connection = http.client.HTTPConnection(address, timeout=BOUND)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_node_serves_the_layout_of_mirrors_and_nothing_else(published: Published) -> None:
    node = published.node
    for file in published.directory.rglob("*"):
        if file.is_file():
            path = str(file.relative_to(published.directory))
            expected = file.read_bytes()
            if path.endswith(".torrent"):  # the node names no web seeds of others
                expected = build_metainfo(expected[7 : expected.index(b"8:url-list")])
            assert ask(node, f"/{path}") == (200, expected)
            assert ask(node, f"/{path.replace('@', '%40')}") == (200, expected)
    (node.home.keys / "default").write_bytes(b"secret")
    name = layer_torrent_name(LAYER_ID)
    data = f"torrents/{published.layer.torrent.hex()}/data/{name}"
    for path in (
        "",
        *("data", "data/", "manifests/", f"data/{name}", f"data/{name}/"),
        *("keys/default", "config.toml", "names.msgpack", "control.sock", "lock", "daemon.log"),
        *(f"{data}/pack", f"{data}/../have", f"torrents/{published.layer.torrent.hex()}/torrent"),
        *("../keys/default", "manifests/../keys/default", "%2e%2e/keys/default", "/etc/passwd"),
        f"manifests/{'0' * 64}",
        f"torrents/{'0' * 40}.torrent",
        f"@{'a' * 52}/image",
    ):
        status, body = ask(node, f"/{path}")
        assert (path, status, body) == (path, 404, b"Not Found\n")


def test_a_node_hands_out_each_piece_once(nodes: Nodes, published: Published) -> None:
    path = f"/dispatch/{published.layer.torrent.hex()}"
    length = published.layer.piece_length
    pieces = [
        published.content[at : at + length] for at in range(0, len(published.content), length)
    ]
    last = len(pieces) - 1
    for _ in range(6):  # what asks by GET or HEAD takes nothing
        assert ask(published.node, f"{path}/{last}") == (404, b"Not Found\n")
        assert ask(published.node, f"{path}/{last}", "HEAD") == (404, b"")
    handed = [ask(published.node, f"{path}/{last},1-3,0", "POST") for _ in range(6)]
    order = [last, 1, 2, 3, 0]
    assert handed[:5] == [(200, piece.to_bytes(4, "big") + pieces[piece]) for piece in order]
    assert handed[5] == (200, b"")
    assert ask(published.node, f"{path}/5-9,4", "POST")[1][4:] == pieces[5]
    assert ask(published.node, f"{path}/{last + 1}", "POST") == (404, b"Not Found\n")
    assert ask(published.node, f"/dispatch/{'0' * 40}/1", "POST") == (404, b"Not Found\n")
    reader = nodes.start()
    reader.call("resolve", ref=str(published.link))
    assert ask(reader, f"{path}/1", "POST") == (404, b"Not Found\n")


FAULTS = [fault for fault in Fault if fault not in (Fault.WRONG_BYTES, Fault.HANGS, Fault.STALLS)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_one_mirror_that_misbehaves_hides_no_other(
    nodes: Nodes, published: Published, fault: Fault
) -> None:
    reader = nodes.start()
    with misbehaving(published.directory) as bad, nginx(published.directory) as good:
        reader.call("resolve", ref=link_to(published, bad.url))
        bad.fault = fault
        with ThreadPoolExecutor() as pool:  # it fails before there is another to be asked
            first = pool.submit(read, reader, published, 0, 50)
            wait_until(lambda: any(request[2] for request in bad.requests))
            if fault is not Fault.NOT_FOUND:
                wait_until(lambda: mirror_state(reader, bad.url)["error"])
            reader.call("resolve", ref=link_to(published, bad.url, good.url))
            assert first.result() == INDEX[:50]
        for at in (600, 700):
            assert read(reader, published, at, 50) == INDEX[:50]
        assert read(reader, published, *CHUNK) == published.chunk()
        assert mirror_state(reader, good.url)["error"] is None
        told = mirror_state(reader, bad.url)
        if fault is Fault.NOT_FOUND:
            assert told["error"] is None  # another had it, and no reader waits
        else:
            assert told["error"].startswith(bad.url)


@pytest.mark.parametrize("fault", [Fault.HANGS, Fault.STALLS], ids=lambda fault: fault.name)
def test_a_mirror_that_says_nothing_is_not_waited_for(
    nodes: Nodes, published: Published, fault: Fault
) -> None:
    reader = nodes.start()
    with misbehaving(published.directory) as bad, nginx(published.directory) as good:
        reader.call("resolve", ref=link_to(published, bad.url))  # so it is asked first
        reader.call("resolve", ref=link_to(published, bad.url, good.url))
        bad.fault = fault
        assert read(reader, published, *CHUNK) == published.chunk()
        assert mirror_state(reader, good.url)["received"] >= CHUNK[1]


@pytest.mark.parametrize("fault", [Fault.NOT_FOUND, Fault.HALF_RANGE, Fault.HANGS])
def test_where_all_mirrors_fail_peers_are_asked(
    nodes: Nodes, published: Published, fault: Fault
) -> None:
    reader = nodes.start()
    gone = f"http://127.0.0.1:{free_port()}/"
    with misbehaving(published.directory, fault) as bad:
        reader.call("resolve", ref=link_to(published, bad.url, gone, peers=True))
        assert read(reader, published, *CHUNK) == published.chunk()
        assert read(reader, published, 0, 512) == INDEX[:512]
        wait_until(lambda: state(reader, published)["have_bytes"])


def test_wrong_bytes_are_healed_by_the_torrent_and_the_liar_is_not_asked_again(
    nodes: Nodes, published: Published
) -> None:
    reader = nodes.start()
    with misbehaving(published.directory, Fault.WRONG_BYTES) as liar:
        reader.call("resolve", ref=link_to(published, liar.url, peers=True))
        assert read(reader, published, 0, 512) != INDEX[:512]
        asked = len(liar.requests)
        assert read(reader, published, 0, 512, heal=True) == INDEX[:512]
        assert read(reader, published, *CHUNK) == published.chunk()
        assert [each for each in liar.requests[asked:] if each[2]] == []
        assert "wrong bytes" in mirror_state(reader, liar.url)["error"]


def test_what_is_read_later_comes_alone_too_unless_pieces_of_it_are_here(
    nodes: Nodes, published: Published
) -> None:
    reader = nodes.start(tuning=NO_HEDGE)
    with nginx(published.directory) as web:
        reader.call("resolve", ref=link_to(published, web.url, peers=True))
        assert read(reader, published, *CHUNK) == published.chunk()
        wait_until(lambda: state(reader, published)["name"])
        before = len(web.requests())
        for at, size in ((len(INDEX) + 50_000, 3000), (len(INDEX) + 53_000, 100)):
            for _ in range(2):
                assert read(reader, published, at, size) == published.content[at : at + size]
        asked = [each.range for each in web.requests()[before:]]
        assert asked == ["bytes=50000-52999", "bytes=53000-53099"]
        assert state(reader, published)["have_bytes"] == 0
        reader.call("fetch", torrent=published.layer.torrent)
        before = len(web.requests())
        assert read(reader, published, 0, 100_000) == published.content[:100_000]
        assert len(web.requests()) == before


def test_a_slow_mirror_is_waited_for(nodes: Nodes, published: Published) -> None:
    reader = nodes.start(tuning=NO_HEDGE)
    with nginx(published.directory, rate=60_000) as web:
        reader.call("resolve", ref=link_to(published, web.url, peers=True))
        assert read(reader, published, *CHUNK) == published.chunk()
        wait_until(lambda: state(reader, published)["name"])
        at, size = len(INDEX) + 50_000, 120_000
        assert read(reader, published, at, size) == published.content[at : at + size]
        # The chunk in its midst is here.
        assert [each.sent for each in web.requests()[-2:]] == [50_000, 65_000]
        traffic = state(reader, published)["traffic"]
        assert sum(peer["received"] for peer in traffic["peers"]) == 0


@pytest.mark.parametrize(("rate", "comes"), [(0, True), (400_000, False)])
def test_a_guess_is_brought_over_a_quick_link_and_not_over_a_slow_one(
    nodes: Nodes, published: Published, rate: int, comes: bool
) -> None:
    # Over loopback a busy machine may seem to have a slow link.
    reader = nodes.start(tuning={"guess": BOUND} if comes else None)
    at = len(INDEX) + 50_000
    ranges = [[published.layer.torrent, at, 10_000]]
    came: list[bytes] = []

    def stream(*, guess: bool) -> None:
        with reader.connect() as client:
            client.call("stream", lambda _, f: came.append(f["data"]), ranges=ranges, guess=guess)

    with nginx(published.directory, rate=rate) as web:
        reader.call("resolve", ref=link_to(published, web.url))
        # Whether it is slow is known once some came.
        assert read(reader, published, *CHUNK) == published.chunk()
        assert read(reader, published, len(INDEX) + 130_000, 150_000)
        stream(guess=True)
        assert came == ([published.content[at:][:10_000]] if comes else [])
        stream(guess=False)
        assert came[-1] == published.content[at:][:10_000]


def test_one_range_that_is_streamed_comes_alone_and_many_by_their_pieces(
    nodes: Nodes, published: Published
) -> None:
    reader = nodes.start(tuning=NO_HEDGE)
    torrent = published.layer.torrent
    came: list[bytes] = []

    def stream(*ranges: tuple[int, int]) -> None:
        with ControlClient.connect(reader.home) as client:
            asked = [[torrent, *each] for each in ranges]
            client.call("stream", lambda _, fields: came.append(fields["data"]), ranges=asked)

    with nginx(published.directory) as web:
        reader.call("resolve", ref=link_to(published, web.url, peers=True))
        assert read(reader, published, *CHUNK) == published.chunk()
        wait_until(lambda: state(reader, published)["name"])
        before = len(web.requests())
        stream((len(INDEX) + 50_000, 3000))
        assert state(reader, published)["have_bytes"] == 0
        assert [each.range for each in web.requests()[before:]] == ["bytes=50000-52999"]
        # From the peer, or from the server while the peer is being connected to.
        stream((len(INDEX) + 200_000, 10), (len(INDEX) + 250_000, 10))
        wait_until(lambda: state(reader, published)["have_bytes"] >= 2 * (16 << 10))
    assert sorted(came) == sorted(
        published.content[at : at + size]
        for at, size in (
            (len(INDEX) + 50_000, 3000),
            (len(INDEX) + 200_000, 10),
            (len(INDEX) + 250_000, 10),
        )
    )


@pytest.mark.parametrize("fault", [Fault.WRONG_BYTES, Fault.NOT_FOUND, Fault.HANGS])
def test_a_mirror_that_goes_wrong_later_keeps_nobody_from_the_torrent(
    nodes: Nodes, published: Published, fault: Fault
) -> None:
    reader = nodes.start()
    at, size = len(INDEX) + 50_000, 3000
    right = published.content[at : at + size]
    with misbehaving(published.directory) as bad:
        reader.call("resolve", ref=link_to(published, bad.url, peers=True))
        assert read(reader, published, *CHUNK) == published.chunk()
        wait_until(lambda: state(reader, published)["name"])
        bad.fault = fault
        assert (read(reader, published, at, size) == right) == (fault is not Fault.WRONG_BYTES)
        assert read(reader, published, at, size, heal=True) == right
        assert read(reader, published, at, size) == right
        wait_until(lambda: state(reader, published)["have_bytes"])


def test_a_mirror_that_dies_half_way_gives_way(nodes: Nodes, published: Published) -> None:
    reader = nodes.start()
    with nginx(published.directory) as web:
        reader.call("resolve", ref=link_to(published, published.url))
        reader.call("resolve", ref=link_to(published, published.url, web.url))
        assert read(reader, published, 0, 512) == INDEX[:512]
        assert mirror_state(reader, published.url)["received"] >= 512
        published.node.end(signal.SIGKILL)
        assert read(reader, published, 512, 512) == INDEX[512:1024]
        assert read(reader, published, *CHUNK) == published.chunk()


def test_a_mirror_that_comes_back_is_asked_again(nodes: Nodes, published: Published) -> None:
    """There is no other source: reading waits for it."""
    reader = nodes.start()
    reader.call("resolve", ref=link_to(published, published.url))
    published.node.end(signal.SIGKILL)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, reader, published, *CHUNK)
        wait_until(lambda: mirror_state(reader, published.url)["error"])
        published.node.start()
        wait_until(lambda: state(reader, published)["name"])
        peers = [list(peer) for peer in published.link.peers]
        torrent = published.layer.torrent
        reader.call("add", torrent=torrent, peers=peers, trackers=[], web_seeds=[])
        assert reading.result(BOUND) == published.chunk()


def test_two_who_want_the_same_ask_once(nodes: Nodes, published: Published) -> None:
    reader = nodes.start()
    with nginx(published.directory, rate=20_000) as web:
        reader.call("resolve", ref=link_to(published, web.url))
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(read, reader, published, *CHUNK) for _ in range(4)]
            assert {job.result(BOUND) for job in jobs} == {published.chunk()}
        asked = [each for each in web.requests() if each.range]
        assert len(asked) == 1


def test_a_name_is_found_at_a_url_and_read_from_there(nodes: Nodes, published: Published) -> None:
    reader = nodes.start()
    with nginx(published.directory) as web:
        found = reader.call("resolve", ref=f"{web.url}{published.link.name}")
        assert found["id"] == published.link.manifest_id
        published.node.end(signal.SIGKILL)
        assert read(reader, published, 0, len(published.content)) == published.content
        reader.call("fetch", torrent=published.layer.torrent)
    assert state(reader, published)["have_bytes"] == len(published.content)


def test_a_name_is_found_at_a_node_and_read_from_there(nodes: Nodes, published: Published) -> None:
    """As from a web server, though a node may lack a part."""
    reader = nodes.start()
    reader.call("resolve", ref=f"{published.url}{published.link.name}")
    reader.call("fetch", torrent=published.layer.torrent)
    assert read(reader, published, 0, len(published.content)) == published.content


def test_a_node_that_serves_nobody_over_http(nodes: Nodes, content: bytes) -> None:
    node = nodes.start("[http]\nlisten = []\n")
    assert parse_link(publish_version(node, content)["link"]).mirrors == ()
    assert node.call("status")["http"]["listen"] == []


def test_what_was_read_once_is_here_when_everybody_is_gone(
    nodes: Nodes, published: Published
) -> None:
    reader = nodes.start()
    parts = [(0, 512), (512, 3584), CHUNK]
    with nginx(published.directory) as web:
        reader.call("resolve", ref=link_to(published, web.url, seeds=True))
        for at, size in parts:
            assert read(reader, published, at, size) == published.content[at : at + size]
        wait_until(lambda: state(reader, published)["name"])
    published.node.end(signal.SIGKILL)
    wait_until(lambda: len(kept_parts(reader, published)) == len(parts))
    for _ in range(2):
        for at, size in parts:
            assert read(reader, published, at, size) == published.content[at : at + size]
        reader.end(signal.SIGKILL)
        reader.start()


def test_a_manifest_that_lies_about_a_layer_hides_it_from_nobody(
    nodes: Nodes, published: Published
) -> None:
    """Any user may sign that the torrent of an image is a layer of their own, of other lengths."""
    liar, reader = nodes.start(), nodes.start()
    liar.call("resolve", ref=str(published.link))
    layer = replace(published.layer, index_length=8192)
    key = KEY.public_key().public_bytes_raw()
    manifest = sign_manifest(Manifest(key, "lie", 1, 0, 4096, (layer,)), KEY)
    told = parse_link(liar.call("seed_manifest", manifest=manifest)["link"])
    mirrors = (*told.mirrors[:1], published.url)
    reader.call("resolve", ref=str(replace(told, peers=(), mirrors=mirrors)))
    reader.call("resolve", ref=link_to(published, published.url, peers=True))
    assert read(reader, published, *CHUNK) == published.chunk()
    assert state(reader, published)["size"] == len(published.content), "by the torrent"


def test_parts_go_once_the_layer_is_here(nodes: Nodes, published: Published) -> None:
    reader = nodes.start()
    reader.call("resolve", ref=link_to(published, published.url, peers=True))
    kept = reader.home.torrents / published.layer.torrent.hex() / "parts"
    assert read(reader, published, *CHUNK) == published.chunk()
    wait_until(kept.exists)
    wait_until(lambda: kept_parts(reader, published) == [CHUNK])
    reader.call("fetch", torrent=published.layer.torrent)
    assert read(reader, published, *CHUNK) == published.chunk()
    wait_until(lambda: not kept.exists())


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_what_was_read_early_is_served_to_others(
    nodes: Nodes, published: Published, killed: bool
) -> None:
    """By peers and over HTTP, when the one who had it first is gone."""
    pupil, peer, reader = nodes.start(tuning={"interest_linger": 0}), nodes.start(), nodes.start()
    pupil.call("resolve", ref=link_to(published, published.url, peers=True))
    parts = [(0, 512), (512, 3584), CHUNK]
    for at, size in parts:
        assert read(pupil, published, at, size) == published.content[at : at + size]
    kept = pupil.home.torrents / published.layer.torrent.hex() / "parts"
    wait_until(lambda: len(kept_parts(pupil, published)) == len(parts))
    if killed:
        wait_until(lambda: state(pupil, published)["name"])
        pupil.end(signal.SIGKILL)
        pupil.start()
    link, _ = publish_on(pupil, published, b"changed" * 1000)
    wait_until(lambda: not kept.exists())
    assert state(pupil, published)["have_bytes"] < len(published.content)
    published.node.end(signal.SIGKILL)
    for node, way in ((peer, replace(link, mirrors=())), (reader, replace(link, peers=()))):
        node.call("resolve", ref=str(way))
        for at, size in parts:
            assert read(node, published, at, size) == published.content[at : at + size]


def publish_on(
    node: Node, base: Published, pack: bytes, public: bool = False
) -> tuple[Link, bytes]:
    """Publish a version of two layers, the one of `base` and a new one; the info hash of that."""
    layer_id = bytes(reversed(LAYER_ID))
    files = {"index": b"j" * 4096, "pack": pack}
    seeded = node.call("seed", staging=str(node.stage(files, layer_torrent_name(layer_id))))
    layer = LayerRef(layer_id, seeded["torrent"], 4096, 512, len(pack), seeded["piece_length"])
    key = KEY.public_key().public_bytes_raw()
    manifest = Manifest(key, "mine", 1, 0, 4096, (base.layer, layer))
    answer = node.call("seed_manifest", manifest=sign_manifest(manifest, KEY), public=public)
    assert answer["announced"] is False
    return parse_link(answer["link"]), layer.torrent


def test_a_link_leads_to_the_layers_below_too(nodes: Nodes, published: Published) -> None:
    """The publisher of the new layer has nothing of the base; a web server has it, and a peer."""
    pupil, reader = nodes.start(), nodes.start()
    pack = bytes(range(256)) * 200
    with nginx(published.directory) as web:
        pupil.call("resolve", ref=link_to(published, web.url, peers=True, seeds=True))
        link, new = publish_on(pupil, published, pack)
        assert link.peers[1:] == published.link.peers
        assert link.mirrors[1:] == (web.url,)
        assert link.web_seeds == (f"{web.url}data/",)
        published.node.end(signal.SIGKILL)
        reader.call("resolve", ref=str(link))
        for torrent in (published.layer.torrent, new):
            reader.call("fetch", torrent=torrent)
        assert read(reader, published, 0, len(published.content)) == published.content
        found = reader.call("read", torrent=new, offset=4096, length=len(pack), heal=False)
        assert found["data"] == pack
        name = layer_torrent_name(bytes(reversed(LAYER_ID)))
        assert len([each for each in web.requests() if name in each.path]) < 10


def test_the_base_comes_from_the_peers_of_its_link(nodes: Nodes, published: Published) -> None:
    pupil, reader = nodes.start(), nodes.start()
    pupil.call("resolve", ref=link_to(published, peers=True))
    link, _ = publish_on(pupil, published, b"changed" * 1000)
    assert link.peers[1:] == published.link.peers
    reader.call("resolve", ref=str(link))
    reader.call("fetch", torrent=published.layer.torrent)
    assert read(reader, published, *CHUNK) == published.chunk()


def test_a_link_names_a_few_of_many_who_have_the_base(nodes: Nodes, published: Published) -> None:
    """This node first, then who is connected."""
    pupil = nodes.start()
    gone = [("127.0.0.1", free_port()) for _ in range(20)]
    mirrors = [f"http://127.0.0.1:{port}/" for _, port in gone]
    [teacher] = published.link.peers
    for first in (0, 10):
        few = mirrors[first : first + 10]
        many = replace(published.link, peers=tuple(gone), mirrors=(published.url, *few))
        seeds = tuple(f"{base}data/" for base in mirrors)
        pupil.call("resolve", ref=str(replace(many, web_seeds=seeds)))
    torrent = published.layer.torrent
    pupil.call("add", torrent=torrent, peers=[list(teacher)], trackers=[], web_seeds=[])
    pupil.call("fetch", torrent=torrent)
    link, _ = publish_on(pupil, published, b"changed" * 1000)
    [own] = pupil.call("status")["listen"]
    assert link.peers[:2] == (parse_peer(own), teacher)
    assert len(link.peers) == 1 + 8
    assert link.mirrors[1] == published.url
    assert (len(link.mirrors), len(link.web_seeds)) == (1 + 4, 4)
    assert len(str(link)) < 1600


def test_a_public_link_names_no_peers_of_others(nodes: Nodes, published: Published) -> None:
    """They came by a link that was not for all; a mirror is there for all."""
    pupil = nodes.start()
    web = "http://localhost:9/"
    pupil.call("resolve", ref=link_to(published, published.url, web, peers=True, seeds=True))
    link, _ = publish_on(pupil, published, b"changed" * 1000, public=True)
    [own] = pupil.call("status")["listen"]
    assert link.peers == (parse_peer(own),)
    assert link.mirrors[1:] == (web,)
    assert f"{web}data/" in link.web_seeds


def test_the_metadata_comes_from_a_mirror_after_a_restart_too(
    nodes: Nodes, published: Published
) -> None:
    """The node was ended before the metadata was there; there are no peers."""
    reader = nodes.start()
    metadata = published.directory / str(MetainfoPath(published.layer.torrent))
    aside = metadata.rename(published.directory / "aside")
    with nginx(published.directory) as web:
        link = link_to(published, web.url, seeds=True)
        reader.call("resolve", ref=link)
        assert read(reader, published, 0, 512) == INDEX[:512]
        assert state(reader, published)["name"] is None
        reader.end(signal.SIGKILL)
        aside.rename(metadata)
        reader.start()
        reader.call("resolve", ref=link)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(reader.call, "fetch", torrent=published.layer.torrent)
            try:
                job.result(BOUND)
            finally:
                reader.end(signal.SIGKILL)
                reader.start()
    assert state(reader, published)["have_bytes"] == len(published.content)


@pytest.mark.parametrize("mirrors", [True, False])
def test_a_link_with_peers_helps_where_the_only_mirror_died(
    nodes: Nodes, published: Published, mirrors: bool
) -> None:
    reader = nodes.start()
    gone = f"http://127.0.0.1:{free_port()}/"
    with nginx(published.directory) as web:
        reader.call("resolve", ref=link_to(published, web.url))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(read, reader, published, *CHUNK)
        try:
            wait_until(lambda: any(each["error"] for each in reader.call("status")["mirrors"]))
            again = (gone,) if mirrors else ()
            reader.call("resolve", ref=link_to(published, *again, peers=True))
            assert job.result(BOUND) == published.chunk()
        finally:
            reader.end(signal.SIGKILL)
            reader.start()
