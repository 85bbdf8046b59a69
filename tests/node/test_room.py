"""Room on disk, with nodes and commands as a user runs them: what goes, what stays, who is told."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.client.control_client import ControlClient
from p2pcloop.formats.link import parse_link
from p2pcloop.store.provisional_log import ProvisionalLog
from p2pcloop.store.stamps import STAMPS_FILE, load_stamps, save_stamps
from tests.support.images import write_cloop_file
from tests.support.nbd_client import READ, NbdClient
from tests.support.programs import Node, Nodes, read_until
from tests.support.waiting import BOUND, wait_until

RAW = random.Random(5).randbytes(40 * 65536)
OTHER = random.Random(6).randbytes(40 * 65536)
PIECE = 16384
FULL = 11
"""The exit code where what must stay is over the quota."""


@pytest.fixture
def publisher(nodes: Nodes) -> Node:
    return nodes.make()


@pytest.fixture
def reader(nodes: Nodes) -> Node:
    return nodes.make()


@pytest.fixture
def link(publisher: Node, tmp_path: Path) -> str:
    """An image of 40 chunks that nothing compresses."""
    return str(publisher.seed(write_cloop_file(tmp_path / "a.cloop", RAW), "a")["link"])


@pytest.fixture
def other(publisher: Node, tmp_path: Path) -> str:
    return str(publisher.seed(write_cloop_file(tmp_path / "b.cloop", OTHER), "b")["link"])


def layer_of(link: str) -> bytes:
    torrent = parse_link(link).pack_torrent
    assert torrent is not None
    return torrent


def here(node: Node, link: str) -> int:
    return int(node.torrents()[layer_of(link).hex()]["have_bytes"])


def collect(node: Node, quota: str, *options: str, code: int = 0) -> dict[str, Any]:
    return node.json("gc", "--quota", quota, *options, code=code)


def exported(node: Node, link: str, path: Path) -> bytes:
    path.unlink(missing_ok=True)
    node.run("export", link, path)
    return path.read_bytes()


@contextlib.asynccontextmanager
async def serving(node: Node, link: str, *options: str | Path) -> AsyncIterator[NbdClient]:
    """A block server, a process of its own, and a client of it; both end in order."""
    path = node.root.parent / "nbd"
    with node.started("block", link, "--nbd", f"unix:{path}", *options) as process:
        read_until(process, "serving at")
        async with await trio.open_unix_socket(path) as stream:
            client = NbdClient(stream)
            await client.haggle()
            yield client
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=BOUND)
        assert process.returncode == 0, said


def test_what_goes_comes_again(reader: Node, link: str, tmp_path: Path) -> None:
    reader.run("fetch", link)
    whole = here(reader, link)
    would = collect(reader, "1M", "--dry-run")
    assert (would["dry_run"], here(reader, link)) == (True, whole)
    done = collect(reader, "1M")
    assert done["room"] > len(RAW) > 1 << 20 >= done["left"]
    [gone] = done["evicted"]
    assert gone["torrent"] == layer_of(link).hex()
    assert here(reader, link) == whole - gone["pieces"] * PIECE + (-whole % PIECE)
    assert reader.json("info", link)["here"] == here(reader, link)
    assert reader.json("verify", link)["bad"] == 0
    assert exported(reader, link, tmp_path / "out") == RAW
    text = reader.run("gc", "--quota", "1M").out
    assert f"pieces of {parse_link(link).name}" in text
    assert "given back" in text
    assert collect(reader, "1M")["evicted"] == []


def test_without_a_quota_nothing_is_evicted(reader: Node, link: str) -> None:
    reader.run("fetch", link)
    done = reader.json("gc")
    assert (done["quota"], done["evicted"], done["removed"]) == (None, [], [])
    assert "no quota is set" in reader.run("gc").out
    assert reader.json("info", link)["here_share"] == 1


def test_a_quota_that_is_set_while_the_node_runs_is_kept(reader: Node, link: str) -> None:
    reader.run("fetch", link)
    assert here(reader, link) > 1 << 20
    told = reader.json("config", "set", "quota", "1M")
    assert (told["running"], told["changed"], told["later"]) == (True, ["quota"], [])
    wait_until(lambda: here(reader, link) <= 1 << 20, "it goes by itself")
    assert reader.json("gc", "--dry-run")["quota"] == 1 << 20
    reader.run("config", "unset", "quota")
    assert reader.json("gc")["quota"] is None


async def test_what_a_running_block_server_uses_stays(
    reader: Node, publisher: Node, link: str, other: str
) -> None:
    """Under collections that never end, and with no source to fetch from."""
    for ref in (link, other):
        reader.run("fetch", ref)
    whole = here(reader, link)
    async with serving(reader, link) as client:
        publisher.run("daemon", "stop")
        collections = 0

        async def collect_for_ever() -> None:
            nonlocal collections
            while True:
                await trio.to_thread.run_sync(_refused, reader, "in use by running guests")
                collections += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect_for_ever)
            with trio.fail_after(BOUND):
                for offset in [*range(0, len(RAW), 65536)] * 3:
                    error, data = await client.call(READ, offset, 65536)
                    assert (error, data) == (0, RAW[offset : offset + 65536])
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert collections
        assert (here(reader, link), here(reader, other)) == (whole, 0)
    collect(reader, "300K")
    assert here(reader, link) < whole


def _refused(node: Node, why: str) -> None:
    said = node.run("gc", "--quota", "300K", code=FULL).err
    [line, _hint] = said.splitlines()[-2:]
    assert "cannot be reduced below the quota of" in line
    assert why in line


def test_a_killed_block_server_holds_nothing(reader: Node, link: str) -> None:
    reader.run("fetch", link)
    path = reader.root.parent / "nbd"
    with reader.started("block", link, "--nbd", f"unix:{path}") as process:
        read_until(process, "serving at")
        _refused(reader, "in use")
        process.kill()
    collect(reader, "300K")
    assert list(reader.home.leases.iterdir()) == []


def test_pinned_images_stay_until_they_are_unpinned(reader: Node, link: str) -> None:
    reader.run("fetch", link)
    name = str(parse_link(link).name)
    assert "is pinned" in reader.run("pin", link).out
    assert [pin["name"] for pin in reader.json("pin")["pins"]] == [name]
    _refused(reader, "are pinned")
    reader.run("daemon", "stop")
    _refused(reader, "are pinned")
    assert reader.json("info", link)["here_share"] == 1
    assert len(reader.json("unpin", name)["unpinned"]) == 1
    assert reader.json("unpin", name)["unpinned"] == []
    assert "was not pinned" in reader.run("unpin", name).out
    collect(reader, "300K")
    assert reader.json("pin")["pins"] == []


def test_a_file_cannot_be_pinned(reader: Node, tmp_path: Path) -> None:
    path = write_cloop_file(tmp_path / "c.cloop", RAW[:65536])
    assert "nothing deletes it" in reader.run("pin", path, code=2).err


async def test_what_lies_below_an_overlay_stays(reader: Node, link: str, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.delta"
    reader.run("fetch", link)
    async with serving(reader, link, "--overlay", overlay):
        pass
    _refused(reader, "lie below overlays")
    assert reader.json("info", link)["here_share"] == 1
    overlay.unlink()
    collect(reader, "300K")


def test_a_layer_stays_for_the_one_of_its_images_that_is_pinned(
    publisher: Node, reader: Node, tmp_path: Path
) -> None:
    cloop = write_cloop_file(tmp_path / "a.cloop", RAW)
    links = [str(publisher.seed(cloop, label)["link"]) for label in ("a", "b")]
    assert layer_of(links[0]) == layer_of(links[1])
    for ref in links:
        reader.run("fetch", ref)
    reader.run("pin", links[1])
    _refused(reader, "are pinned")
    assert reader.json("info", links[0])["here_share"] == 1


def test_what_was_published_here_stays(publisher: Node, tmp_path: Path) -> None:
    raw = tmp_path / "raw.img"
    raw.write_bytes(RAW)
    seeded = publisher.seed(raw)
    assert seeded["in_place"] is False
    _refused(publisher, "were published from here")
    assert publisher.json("verify", seeded["link"])["bad"] == 0


def test_files_that_are_seeded_in_place_are_not_touched(
    publisher: Node, link: str, tmp_path: Path
) -> None:
    # Another node's publication: here, it is only a file of the user's.
    for key in publisher.home.keys.iterdir():
        key.unlink()
    before = (tmp_path / "a.cloop").read_bytes()
    publisher.run("gc", "--quota", "1K", code=FULL)
    assert (tmp_path / "a.cloop").read_bytes() == before
    assert publisher.json("info", link)["here_share"] == 1


async def test_what_was_booted_least_recently_goes_first(
    reader: Node, link: str, other: str
) -> None:
    for ref in (link, other):
        reader.run("fetch", ref)
    directories = [reader.home.torrents / layer_of(ref).hex() for ref in (link, other)]
    # As if that had been long ago.
    for directory, when in zip(directories, (1000, 2000), strict=True):
        pieces = len(load_all(directory))
        (directory / STAMPS_FILE).unlink()
        save_stamps(directory, pieces, b"\xff" * -(-pieces // 8), when)
    async with serving(reader, link) as client:
        assert await client.call(READ, 10 * 65536, 65536) == (0, RAW[10 * 65536 : 11 * 65536])
    stamps = load_all(directories[0])
    used = [piece for piece, stamp in enumerate(stamps) if stamp > 2000]
    assert 5 <= len(used) <= 10, "a chunk of 64 KiB, and what of the index was read"
    assert max(stamps) - time.time() < 60
    whole = here(reader, other)
    done = collect(reader, "3M")
    assert [gone["torrent"] for gone in done["evicted"]] == [layer_of(link).hex()]
    assert here(reader, other) == whole
    collect(reader, "260K")
    assert here(reader, other) <= 5 * PIECE
    assert here(reader, link) >= (len(used) - 1) * PIECE


def load_all(directory: Path) -> list[int]:
    """The stamps of a torrent of as many pieces as the file has."""
    size = (directory / STAMPS_FILE).stat().st_size
    return list(load_stamps(directory, (size - 20) // 4))


def test_the_node_keeps_its_quota_by_itself(
    nodes: Nodes, link: str, other: str, tmp_path: Path
) -> None:
    reader = nodes.make('quota = "4M"')
    reader.run("fetch", link)
    assert reader.json("info", link)["here_share"] == 1
    (reader.home.torrents / layer_of(link).hex() / STAMPS_FILE).unlink()
    reader.run("fetch", other)
    with ControlClient.connect(reader.home) as client:
        wait_until(lambda: _held(client) <= 4 << 20)
    assert here(reader, other) > here(reader, link) > 0
    wait_until(lambda: "pieces evicted" in reader.home.log.read_text())
    for ref, raw in ((link, RAW), (other, OTHER)):
        assert exported(reader, ref, tmp_path / "out") == raw


def test_what_is_demanded_comes_whatever_the_quota_is(
    nodes: Nodes, link: str, tmp_path: Path
) -> None:
    reader = nodes.make("quota = 0")
    assert exported(reader, link, tmp_path / "out") == RAW
    reader.run("pin", link)
    reader.run("fetch", link)
    assert reader.json("info", link)["here_share"] == 1
    assert "pinned" in reader.run("gc", code=FULL).err


def _held(client: ControlClient) -> int:
    return sum(each["have_bytes"] for each in client.call("status")["torrents"])


def test_what_nothing_names_is_removed_after_a_day(reader: Node, link: str) -> None:
    reader.run("fetch", link)
    staged = []
    for name in ("old", "new"):
        staging = reader.home.tmp / name
        (staging / "data" / "x").mkdir(parents=True)
        for file in ("index", "pack"):
            (staging / "data" / "x" / file).write_bytes(name.encode() * 10_000)
        with ControlClient.connect(reader.home) as client:
            staged.append(client.call("seed", staging=str(staging))["torrent"])
    old, new = (reader.home.torrents / torrent.hex() for torrent in staged)
    for path in old.iterdir():
        os.utime(path, (time.time(), time.time() - 25 * 3600))
    assert reader.json("gc", "--dry-run")["removed"] == [staged[0].hex()]
    assert old.exists()
    assert reader.json("gc")["removed"] == [staged[0].hex()]
    assert (old.exists(), new.exists()) == (False, True)
    assert staged[0].hex() not in reader.torrents()
    assert reader.json("info", link)["here_share"] == 1
    assert list(reader.home.tmp.iterdir()) == []


def test_what_is_published_once_more_is_not_removed_meanwhile(reader: Node) -> None:
    """A publish that was broken off days ago left it; now its manifest is about to come."""
    reader.run("daemon", "start")
    torrents = []
    for name in ("one", "two"):
        staging = reader.home.tmp / name
        (staging / "data" / "x").mkdir(parents=True)
        for file in ("index", "pack"):
            (staging / "data" / "x" / file).write_bytes(b"same" * 10_000)
        with ControlClient.connect(reader.home) as client:
            torrents.append(client.call("seed", staging=str(staging))["torrent"])
        directory = reader.home.torrents / torrents[0].hex()
        if name == "one":
            for path in directory.iterdir():
                os.utime(path, (time.time(), time.time() - 25 * 3600))
    assert torrents[0] == torrents[1]
    assert reader.json("gc")["removed"] == []
    assert directory.exists()


def test_parts_that_were_read_early_count_and_go_with_their_torrent(
    reader: Node, link: str
) -> None:
    reader.run("fetch", link)
    torrent = b"t" * 20
    with ControlClient.connect(reader.home) as client:
        client.call("add", torrent=torrent, peers=[], trackers=[], web_seeds=[])
    directory = reader.home.torrents / torrent.hex()
    before = reader.json("gc")["room"]
    ProvisionalLog(directory).keep({4096: RAW[:1_000_000]})
    assert reader.json("gc")["room"] - before >= 1_000_000
    for path in directory.iterdir():
        os.utime(path, (time.time(), time.time() - 25 * 3600))
    done = reader.json("gc")
    assert done["removed"] == [torrent.hex()]
    assert (done["left"] <= before, directory.exists()) == (True, False)


def test_what_is_about_to_be_published_stays(reader: Node) -> None:
    """A publisher's only copy, between the two steps of publishing."""
    staging = reader.home.tmp / "new"
    (staging / "data" / "x").mkdir(parents=True)
    for file in ("index", "pack"):
        (staging / "data" / "x" / file).write_bytes(RAW)
    reader.run("daemon", "start")
    with ControlClient.connect(reader.home) as client:
        torrent = client.call("seed", staging=str(staging))["torrent"]
    _refused(reader, "are of no known image yet")
    assert reader.torrents()[torrent.hex()]["have_bytes"] == 2 * len(RAW)


def test_a_collection_that_is_killed_loses_nothing(reader: Node, link: str, tmp_path: Path) -> None:
    """At any moment: whenever it happens to be; every step is tried in the engine's own tests."""
    reader.run("fetch", link)
    for delay in (0, 0.002, 0.005, 0.01, 0.02):
        with ControlClient.connect(reader.home):
            pass
        command = reader.command("gc", "--quota", "1M")
        with subprocess.Popen(command, env=reader.environment, stderr=subprocess.DEVNULL) as run:
            time.sleep(0.2 + delay)
            reader.signal(signal.SIGKILL)
            run.kill()
        assert reader.json("verify", link)["bad"] == 0
        assert exported(reader, link, tmp_path / "out") == RAW
        reader.run("fetch", link)


def test_a_damaged_manifest_stops_it_with_one_line(reader: Node, link: str) -> None:
    reader.run("fetch", link)
    path = reader.home.manifests / parse_link(link).manifest_id.hex()
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    said = reader.run("gc", "--quota", "300K", code=3).err
    assert f"{path} is damaged" in said
    path.write_bytes(data)
    assert reader.json("info", link)["here_share"] == 1
