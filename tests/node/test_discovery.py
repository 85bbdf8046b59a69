"""Names that are found by the DHT and on the local network, by real nodes on loopback."""

from __future__ import annotations

import logging
import math
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from zeroconf import ServiceInfo

from p2pcloop.client.publisher import serve_version
from p2pcloop.errors import MismatchError, NotHereError, P2pcloopError
from p2pcloop.formats.key_file import format_key_text
from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import LayerRef, Manifest, open_manifest, sign_manifest
from p2pcloop.formats.name import Name
from p2pcloop.formats.record import Record, open_record, sign_record
from p2pcloop.store.home import Home
from p2pcloop.store.keys import store_key
from p2pcloop.store.records import Records
from p2pcloopd.engine.bt.settings import EngineSettings
from p2pcloopd.engine.engine import Engine, open_engine
from p2pcloopd.names.dht import Announcer, DhtSource
from p2pcloopd.names.lan import SERVICE, Endpoints, endpoints_of, own_endpoints
from p2pcloopd.names.lookup import look_up
from tests.node.conftest import KEY
from tests.support.programs import Node, Nodes
from tests.support.waiting import BOUND, until, wait_until

PUBLIC = KEY.public_key().public_bytes_raw()
NAME = Name(PUBLIC, "debian")
NOBODY = "127.0.0.99:9"


def dht(node: Node | None = None) -> str:
    where = NOBODY if node is None else node.call("status")["listen"][0]
    return f'[http]\nlisten = []\n[discovery]\ndht = true\ndht_nodes = ["{where}"]\n'


def publish(node: Node, data: bytes, *, public: bool) -> dict[str, Any]:
    """Publish `data` as the layer of version 1 of `NAME`."""
    seeded = node.call("seed", staging=str(node.stage({"index": b"i" * 4096, "pack": data})))
    layer = LayerRef(b"l" * 32, seeded["torrent"], 4096, 512, len(data), seeded["piece_length"])
    signed = open_manifest(sign_manifest(Manifest(PUBLIC, "debian", 1, 0, 4096, (layer,)), KEY))
    with node.connect() as client:
        return seeded | serve_version(client, signed, KEY, public=public)


def wait_for_log(node: Node, text: str, times: int = 1) -> None:
    """Wait until p2pcloopd has said something so often."""
    log = node.home.log
    wait_until(lambda: log.read_text().count(text) >= times, f"never said: {text}")


def resolve(node: Node) -> dict[str, Any]:
    return node.call("resolve", ref=str(NAME), look=True)


def test_a_public_name_is_found_by_the_dht_alone(nodes: Nodes, content: bytes) -> None:
    publisher = nodes.start(dht(nodes.start(dht())))
    store_key(publisher.home.keys, "mine", format_key_text(KEY, None))
    published = publish(publisher, content, public=True)
    wait_for_log(publisher, "of the DHT keep version 1")
    reader = nodes.start(dht(publisher))
    found = resolve(reader)
    assert found["id"] == published["id"]
    assert found["peers"] == []
    read = reader.call("read", torrent=published["torrent"], offset=4096, length=1000, heal=False)
    assert read["data"] == content[:1000]


def test_a_dht_that_is_joined_nowhere_is_told(nodes: Nodes) -> None:
    node = nodes.start("[discovery]\ndht = true\n")
    wait_for_log(node, f"discovery.dht_nodes HOST:PORT --home {node.home.root}`")


def test_a_restarted_publisher_puts_its_record_again(nodes: Nodes, content: bytes) -> None:
    first = nodes.start(dht())
    publisher = nodes.start(dht(first))
    store_key(publisher.home.keys, "mine", format_key_text(KEY, None))
    published = publish(publisher, content, public=True)
    wait_for_log(publisher, "of the DHT keep version 1")
    for node in (first, publisher):  # no node keeps it any more
        node.end(signal.SIGTERM)
    other = nodes.start(dht())
    publisher.configure(dht(other))
    publisher.start()
    wait_for_log(publisher, "of the DHT keep version 1", times=2)
    assert resolve(nodes.start(dht(other)))["id"] == published["id"]


def test_a_record_whose_key_needs_a_passphrase_is_put_until_a_restart(
    nodes: Nodes, content: bytes
) -> None:
    publisher = nodes.start(dht(nodes.start(dht())))
    store_key(publisher.home.keys, "mine", format_key_text(KEY, "a passphrase"))
    publish(publisher, content, public=True)
    wait_for_log(publisher, "of the DHT keep version 1")
    publisher.end(signal.SIGTERM)
    publisher.start()
    wait_for_log(publisher, "cannot be kept in the DHT until it is published again")


def test_a_key_that_is_not_the_names_is_refused(nodes: Nodes, content: bytes) -> None:
    publisher = nodes.start()
    published = publish(publisher, content, public=False)
    record = Record(PUBLIC, "debian", 1, 0, published["id"], published["manifest_torrent"])
    with pytest.raises(MismatchError, match="another one"):
        publisher.call("seed_record", record=sign_record(record, KEY), key=bytes(32))


def test_nodes_on_the_local_network_tell_names_and_are_peers(nodes: Nodes, content: bytes) -> None:
    publisher = nodes.start("[discovery]\nlan = true\n")
    published = publish(publisher, content, public=False)
    reader = nodes.start("[discovery]\nlan = true\n")
    found: list[dict[str, Any]] = []

    def is_found() -> bool:
        with suppress(NotHereError):  # others are given some seconds to answer
            found.append(resolve(reader))
        return bool(found)

    wait_until(is_found)
    assert found[0]["id"] == published["id"]
    read = reader.call("read", torrent=published["torrent"], offset=4096, length=1000, heal=False)
    assert read["data"] == content[:1000]
    with pytest.raises(P2pcloopError) as info:
        resolve(nodes.start())
    assert isinstance(info.value, NotHereError)


# --- the announcer and what others may have put ---------------------------------------------


def signed_record(version: int, manifest: bytes = b"m" * 32) -> bytes:
    return sign_record(Record(PUBLIC, "debian", version, 0, manifest, b"t" * 20), KEY)


def settings(host: str, *known: tuple[str, int]) -> EngineSettings:
    return EngineSettings(listen=((host, 0),), dht=True, dht_nodes=known or (("127.0.0.99", 9),))


async def a_public_name(home: Home, engine: Engine) -> tuple[Records, bytes]:
    """Version 2 of `NAME`, published as public; and its record."""
    home.create()
    layer = LayerRef(b"l" * 32, b"t" * 20, 4096, 512, 8192, 16384)
    signed = open_manifest(sign_manifest(Manifest(PUBLIC, "debian", 2, 0, 4096, (layer,)), KEY))
    staging = home.tmp / "staging"
    (staging / "data").mkdir(parents=True)
    (staging / "data" / "manifest").write_bytes(signed.data)
    torrent = await engine.seed(staging, public=True)
    record = sign_record(Record(PUBLIC, "debian", 2, 0, signed.id, torrent.info_hash), KEY)
    records = Records(home)
    records.keep(signed, Link(NAME, signed.id, torrent.info_hash), record=open_record(record))
    return records, record


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (signed_record(3), "newer than version 2 here"),
        (signed_record(2), "fork"),
        (signed_record(1), None),
        (b"no record", "is replaced"),
        (sign_record(Record(PUBLIC, "other", 9, 0, b"m" * 32, b"t" * 20), KEY), None),
    ],
    ids=["newer", "fork", "older", "garbage", "of another name"],
)
async def test_what_is_newer_stays_and_anything_else_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, there: bytes, said: str | None
) -> None:
    home = Home.at(tmp_path / "home")
    caplog.set_level(logging.INFO)
    stays = said is not None and "replaced" not in said
    async with (
        open_engine(settings("127.0.0.101"), tmp_path / "first") as first,
        open_engine(settings("127.0.0.102", *first.listen_ports), home.torrents) as engine,
    ):
        assert first.dht is not None
        assert engine.dht is not None
        with trio.fail_after(BOUND):
            records, record = await a_public_name(home, engine)
            assert await first.dht.put(KEY, b"debian", there)
            announcer = Announcer(engine.dht, engine, records, home.keys)
            announcer._keys[PUBLIC] = KEY
            async with trio.open_nursery() as nursery:
                nursery.start_soon(announcer.run)
                await until(lambda: any(0 < due < math.inf for due in announcer._due.values()))
                nursery.cancel_scope.cancel()
            values = await engine.dht.get(PUBLIC, b"debian")
            assert values[-1] == (there if stays else record)
    assert said is None or said in caplog.text


async def test_garbage_in_the_dht_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        open_engine(settings("127.0.0.103"), tmp_path / "first") as first,
        open_engine(settings("127.0.0.104", *first.listen_ports), tmp_path / "other") as engine,
    ):
        assert first.dht is not None
        assert engine.dht is not None
        source = DhtSource(engine.dht)
        stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
        with trio.fail_after(BOUND):
            assert await first.dht.put(KEY, b"debian", b"garbage")
            assert (await look_up(NAME, [source], thorough=True)).newest == []
            assert "the DHT: " in caplog.text
            assert await first.dht.put(KEY, b"debian", signed_record(7))
            [found] = (await look_up(NAME, [source], thorough=True)).newest
            assert found.record.version == 7
            assert await first.dht.put(stranger, b"debian", signed_record(9))  # not under our key
            [found] = (await look_up(NAME, [source], thorough=True)).newest
            assert found.record.version == 7


# --- what is told on the local network ------------------------------------------------------


def announced(*addresses: str, port: int = 1, **told: str) -> ServiceInfo:
    return ServiceInfo(
        SERVICE, f"n.{SERVICE}", port=port, properties=told, parsed_addresses=list(addresses)
    )


def test_a_node_tells_where_it_is_reached() -> None:
    home, lan = ("127.0.0.1", 7), ("10.0.0.1", 8)
    assert own_endpoints([home], [("127.0.0.1", 9)]) == Endpoints(("127.0.0.1",), 7, 9)
    assert own_endpoints([home, lan], [("127.0.0.1", 9)]) == Endpoints(("10.0.0.1",), 8, None)
    assert own_endpoints([lan], [("10.0.0.1", 9)]) == Endpoints(("10.0.0.1",), 8, 9)
    assert own_endpoints([("::", 7)], []) is None


def test_what_nodes_tell_is_checked() -> None:
    found = endpoints_of(announced("10.0.0.1", "127.0.0.1", http="80"), loopback=False)
    assert found == Endpoints(("10.0.0.1",), 1, 80)
    assert found.urls == ("http://10.0.0.1:80/",)
    assert found.peers == (("10.0.0.1", 1),)
    for told in ("", "0", "65536", "-1", "8 0", "x", "999999999999"):
        found = endpoints_of(announced("10.0.0.1", http=told), loopback=False)
        assert found == Endpoints(("10.0.0.1",), 1, None)
    assert endpoints_of(announced("10.0.0.1", port=0), loopback=False) is None
    assert endpoints_of(announced("10.0.0.1"), loopback=True) is None
    for address in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"):
        assert endpoints_of(announced(address), loopback=False) is None
    many = endpoints_of(announced(*(f"10.0.0.{n}" for n in range(1, 30))), loopback=False)
    assert many is not None
    assert len(many.addresses) == 4
