"""Peers that are not there, that lie, that come back, and that others wrote; a daemon that dies."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from p2pcloop.errors import BusyError
from p2pcloop.formats.link import Link, parse_link, parse_peer
from tests.support.foreign import aria2
from tests.support.ports import free_port
from tests.support.programs import NO_HEDGE, Guest, Node, Nodes, read_until, tool
from tests.support.tracker import tracker
from tests.support.waiting import BOUND, wait_until
from tools.tiny_image import SHELL_PROMPT

from .conftest import DATA

pytestmark = pytest.mark.e2e

MD5 = hashlib.md5(DATA).hexdigest()


def with_peers(link: str, peers: Sequence[Node | tuple[str, int]]) -> str:
    """The link with other peers in it, and no mirrors: these tests are of peers."""
    addresses = [
        parse_peer(peer.json("status")["listen"][0]) if isinstance(peer, Node) else peer
        for peer in peers
    ]
    changed: Link = replace(parse_link(link), peers=tuple(addresses), mirrors=())
    return str(changed)


def copy_of(image: Path, nodes: Nodes) -> Path:
    """A copy that a test may change."""
    copy = nodes.directory / f"copy{image.suffix}"
    shutil.copyfile(image, copy)
    return copy


def damage(path: Path, step: int = 4096) -> None:
    """Change one byte in each `step` bytes of a file, without changing its size."""
    with path.open("r+b") as file:
        data = bytearray(file.read())
        for offset in range(step // 2, len(data), step):
            data[offset] ^= 0x55
        file.seek(0)
        file.write(data)


def test_no_peer_is_told_and_tried_until_it_is_there(nodes: Nodes, cloop: Path) -> None:
    port = free_port()
    seeder = nodes.make(f'listen = ["127.0.0.1:{port}"]')
    reader = nodes.make("waiting_after = 0.3")
    link = seeder.seed(cloop)["link"]
    seeder.run("daemon", "stop")
    other = ("127.0.0.1", free_port())
    tried = with_peers(link, [other, ("127.0.0.1", port)])
    with reader.started("fetch", tried, "--json") as fetching:
        told = read_until(fetching, "no peer reachable")
        assert f"127.0.0.1:{port}" in told
        assert f"127.0.0.1:{other[1]}" in told
        assert fetching.poll() is None
        seeder.run("daemon", "start")
        out, err = fetching.communicate(timeout=BOUND)
        assert fetching.returncode == 0, err
        again = [re.sub(r" for \d+ s", "", line) for line in (told, *err.splitlines(keepends=True))]
        again = [line for line in again if "no peer reachable" in line]
        assert len({*again}) == len(again), "said once, and again where a try ends otherwise"
    assert set(json.loads(out)["sources"]) == {f"127.0.0.1:{port}"}


def test_the_guest_waits_for_a_peer(nodes: Nodes, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make("waiting_after = 0.3")
    link = seeder.seed(cloop)["link"]
    with Guest(reader, link) as guest:
        guest.prompt()
        seeder.run("daemon", "stop")
        guest.send_line("md5sum /root/data")
        wait_until(lambda: "no peer reachable" in guest.said)
        assert "the guest of @" in reader.run("daemon", "stop", code=BusyError.exit_code).err
        reader.run("daemon", "stop", "--force")
        wait_until(lambda: "the guest waits: no p2pcloopd runs" in guest.said)
        reader.run("daemon", "start")
        seeder.run("daemon", "start")
        guest.expect(MD5, BOUND)
        assert "error" not in guest.sh("dmesg | grep -i error; true")
        guest.power_off()
    [address] = seeder.json("status")["listen"]
    assert address in guest.said


def test_a_peer_that_was_away_while_nothing_was_read(nodes: Nodes, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    link = seeder.seed(cloop)["link"]
    with Guest(reader, link) as guest:
        guest.prompt()
        for _ in range(2):
            seeder.run("daemon", "stop")
            seeder.run("daemon", "start")
        assert MD5 in guest.sh("md5sum /root/data")
        guest.power_off()


def test_a_peer_whose_file_was_changed_sends_nothing(
    nodes: Nodes, image: Path, cloop: Path
) -> None:
    """Its file changes behind its back: it notes that, compares, and says so to its user."""
    liar, honest, reader = nodes.make(), nodes.make(), nodes.make("waiting_after = 0.3")
    copy = copy_of(cloop, nodes)
    link = liar.seed(copy)["link"]
    honest.run("fetch", link)
    damage(copy)
    wait_until(lambda: "changed" in {each["trouble"] for each in liar.torrents().values()})

    with reader.started("fetch", link, "--json") as fetching:
        # No other peer is known to the reader: what the liar sends is all there is.
        read_until(fetching, "status 404")
        reader.run("info", with_peers(link, [honest]))
        out, err = fetching.communicate(timeout=BOUND)
        assert fetching.returncode == 0, err
    assert "wrong" not in err
    sources = json.loads(out)["sources"]
    assert honest.json("status")["listen"][0] in sources
    out_image = nodes.directory / "out.img"
    reader.run("export", link, out_image)
    assert out_image.read_bytes() == image.read_bytes()
    assert reader.json("verify", link)["bad"] == 0


def test_a_guest_boots_on_when_one_of_its_peers_lies(nodes: Nodes, cloop: Path) -> None:
    liar, honest, reader = nodes.make(), nodes.make(), nodes.make()
    copy = copy_of(cloop, nodes)
    link = liar.seed(copy)["link"]
    honest.run("fetch", link)
    damage(copy)
    report = nodes.directory / "report.json"
    with Guest(reader, with_peers(link, [liar, honest]), "--report", report) as guest:
        guest.prompt()
        assert MD5 in guest.sh("md5sum /root/data")
        guest.power_off()
    assert honest.json("status")["listen"][0] in json.loads(report.read_text())["sources"]
    assert "error" not in guest.printed


def test_p2pcloopd_killed_under_a_guest(nodes: Nodes, cloop: Path) -> None:
    # What a boot reads takes seconds to come: most of it is on the way when the kernel speaks.
    seeder, reader = nodes.make("upload_limit = 400_000"), nodes.make()
    link = seeder.seed(cloop)["link"]
    with Guest(reader, link, "--append", "") as guest:
        guest.expect("Linux version", BOUND)
        # The seeder stands still: neither the boot nor the read can end before p2pcloopd does.
        seeder.signal(signal.SIGSTOP)
        restart(reader)
        assert SHELL_PROMPT not in guest.printed
        seeder.signal(signal.SIGCONT)
        guest.prompt()

        seeder.signal(signal.SIGSTOP)
        guest.send_line("head -c 1000000 /root/data | md5sum")
        guest.expect("md5sum", BOUND)
        restart(reader)
        seeder.signal(signal.SIGCONT)
        guest.expect(hashlib.md5(DATA[:1_000_000]).hexdigest(), BOUND)
        assert "error" not in guest.sh("dmesg | grep -i error; true")
        guest.power_off()
    assert reader.json("verify", link)["bad"] == 0


def restart(node: Node) -> None:
    node.signal(signal.SIGKILL)
    node.run("daemon", "start")


def test_a_client_that_others_wrote_seeds_for_us(nodes: Nodes, cloop: Path) -> None:
    """aria2 takes a layer from our node by the link, and serves it when our node is gone."""
    seeder, reader, keeper = nodes.make(), nodes.make(), nodes.make()
    link = seeder.seed(cloop)["link"]
    keeper.run("info", link)  # it has the manifest, which is not in the layer's torrent
    report = nodes.directory / "report.json"
    # It knows no `x.pe`: a tracker tells it where our node is.
    with tracker(always=parse_link(link).peers) as known, aria2() as foreign:
        foreign.open(str(replace(parse_link(link), trackers=(known.url,))))
        layer = parse_link(link).pack_torrent
        assert layer is not None
        wait_until(partial(foreign.complete, layer), "aria2 does not seed")
        size = cloop.stat().st_size
        [pack] = [path for path in foreign.directory.rglob("*") if path.stat().st_size == size]
        assert pack.read_bytes() == cloop.read_bytes()
        seeder.run("daemon", "stop")
        here = with_peers(link, [keeper, foreign.address])
        with Guest(reader, here, "--report", report) as guest:
            guest.prompt()
            assert MD5 in guest.sh("md5sum /root/data")
            guest.power_off()
    sources = json.loads(report.read_text())["sources"]
    assert sources["{}:{}".format(*foreign.address)] > len(DATA)


def test_a_p2pcloopd_that_comes_back_under_a_reader_asks_servers(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    """It knew of no mirror until a command named the image again, and asked peers for all."""
    seeder, reader = nodes.make(), nodes.make(tuning=NO_HEDGE)
    link = seeder.seed(cloop)["link"]
    socket = tmp_path / "s"
    with reader.started("block", link, "--nbd", f"unix:{socket}") as block:
        read_until(block, "serving")
        read = ("qemu-io", "-r", "-f", "raw", f"nbd+unix:///?socket={socket}", "-c")
        tool(*read, "read 8M 64k")
        reader.signal(signal.SIGKILL)
        reader.run("daemon", "start")
        for at in range(9, 14):
            tool(*read, f"read {at}M 64k")
        torrents = [each for each in reader.torrents().values() if each["traffic"]["servers"]]
        assert len(torrents) == 1, "the pack's"
        traffic = torrents[0]["traffic"]
        assert sum(peer["received"] for peer in traffic["peers"]) == 0
        assert torrents[0]["received_again"] == 0
