"""An image goes from one node to another, by link alone, and boots there."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_compress import CODECS, Compress, smallest_compressor
from p2pcloop.formats.link import parse_link
from p2pcloopd.guest.system.kernel import find_kernel
from tests.support.cloops import build_v4
from tests.support.programs import NO_HEDGE, Guest, Nodes, tool
from tests.support.waiting import BOUND

from .conftest import DATA

pytestmark = pytest.mark.e2e


def test_changes_last_from_boot_to_boot(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    seeder, reader = nodes.make(), nodes.make(tuning=NO_HEDGE)
    said = seeder.run("seed", cloop, "--name", "tiny", "--json")
    assert "starting p2pcloopd" in said.err
    seeded = json.loads(said.out)
    assert seeded["in_place"] is True
    overlay, report = tmp_path / "mine.delta", tmp_path / "report.json"

    with Guest(reader, seeded["link"], "--overlay", overlay, "--report", report) as guest:
        guest.prompt()
        assert "starting p2pcloopd" in guest.said
        guest.sh("echo kept > /root/mine && sync")
        guest.power_off()
    _tells_all(json.loads(report.read_text()), seeded["link"], cloop)

    # By name now, with no other node there: what the first boot read is here.
    seeder.run("daemon", "stop")
    with Guest(reader, seeded["name"], "--overlay", overlay, "--report", report) as guest:
        guest.prompt()
        assert "starting" not in guest.said
        assert guest.sh("cat /root/mine").split() == ["kept"]
        guest.power_off()
    told = json.loads(report.read_text())
    # (p2pcloopd may hand over first parts that have not become pieces yet.)
    assert (told["bytes_received"], told["sources"]) == (0, {})

    # The same overlay over the file itself: it is the content that counts.
    raw = tmp_path / "merged.img"
    reader.run("export", cloop, raw, "--overlay", overlay)
    assert tool("debugfs", "-R", "cat /root/mine", raw) == "kept\n"
    assert reader.json("info", overlay)["made_on"] == seeded["name"]


def _tells_all(told: dict[str, Any], link: str, cloop: Path) -> None:
    """The report of a boot from another node."""
    assert (told["exit"], told["exit_code"]) == ("poweroff", 0)
    assert 0 < told["boot_seconds"] < told["total_seconds"]
    ran = find_kernel()
    assert (told["kernel"], told["kernel_release"]) == (str(ran.path), ran.release)
    [url] = parse_link(link).mirrors
    sources = told["sources"]  # what a guest waits for comes over HTTP
    assert max(sources, key=lambda source: sources[source]) == url
    assert all(count > 0 for count in told["sources"].values())
    assert sum(told["sources"].values()) <= told["bytes_received"] < cloop.stat().st_size
    assert told["block_server"]["waits"]["count"] > 0
    assert told["image_stored"] == cloop.stat().st_size


def test_two_guests_boot_at_once(nodes: Nodes, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    link = seeder.seed(cloop)["link"]
    digest = hashlib.md5(DATA).hexdigest()
    with Guest(reader, link) as one, Guest(reader, link) as two:
        for guest in (one, two):
            guest.prompt()
        for guest in (one, two):
            guest.send_line("md5sum /root/data")
        for guest in (one, two):
            guest.expect(digest, BOUND)
            guest.power_off()
    assert reader.json("verify", seeder.json("info", link)["name"])["bad"] == 0


def test_a_fetched_image_needs_nobody(nodes: Nodes, image: Path, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)
    fetched = reader.json("fetch", seeded["link"])
    assert fetched["bytes_received"] > cloop.stat().st_size
    seeder.run("daemon", "stop")
    assert reader.json("info", seeded["name"])["here_share"] == 1
    out = nodes.directory / "out.img"
    reader.run("export", seeded["name"], out)
    assert out.read_bytes() == image.read_bytes()
    back = nodes.directory / "out.cloop"
    reader.run("export", seeded["name"], back)
    tool("qemu-img", "compare", "-f", "raw", image, "-F", "cloop", back)


def test_a_whole_image_boots_before_p2pcloopd_starts(nodes: Nodes, cloop: Path) -> None:
    """It starts before the guest has ended, or as soon as bytes turn out to be wrong."""
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)
    reader.run("fetch", seeded["link"])
    reader.run("daemon", "stop")
    with Guest(reader, seeded["link"], "--no-profile") as guest:
        guest.prompt()
        assert "p2pcloopd starts" in guest.said
        guest.power_off()
    assert reader.home.holder() is not None

    reader.run("daemon", "stop")
    [pack] = reader.home.torrents.glob("*/data/*/pack")
    with pack.open("r+b") as file:
        at = file.seek(0, os.SEEK_END) // 2  # /root/data, which no boot touches
        file.seek(at)
        kept = file.read(1)
        file.seek(at)
        file.write(bytes([kept[0] ^ 1]))
    with Guest(reader, seeded["link"], "--no-profile") as guest:
        guest.prompt()
        guest.send_line("md5sum /root/data")
        guest.expect(hashlib.md5(DATA).hexdigest(), BOUND)
        assert reader.home.holder() is not None
        guest.power_off()
    assert reader.json("verify", seeded["name"])["bad"] == 0


def test_a_cloop_v4_of_all_codecs_boots_from_a_peer(nodes: Nodes, image: Path) -> None:
    """A codec after the other, with its header last; served as it lies."""
    raw, size = image.read_bytes(), 65536
    ways: list[Compress] = [smallest_compressor(codec, 1) for codec in CODECS]
    ways.append(lambda block: (Codec.NONE, block))
    starts = range(0, len(raw), size)
    blocks = [way(raw[at : at + size]) for at, way in zip(starts, cycle(ways), strict=False)]
    codecs, streams = zip(*blocks, strict=True)
    cloop = nodes.directory / "v4.cloop"
    cloop.write_bytes(build_v4(codecs, streams=streams, block_size=size, header_last=True))
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)
    assert seeded["in_place"] is True
    with Guest(reader, seeded["link"]) as guest:
        guest.prompt()
        assert hashlib.md5(DATA).hexdigest() in guest.sh("md5sum /root/data")
        guest.power_off()
    reader.run("fetch", seeded["name"])
    seeder.run("daemon", "stop")
    assert reader.json("verify", seeded["name"])["bad"] == 0
    out = nodes.directory / "out.img"
    reader.run("export", seeded["name"], out)
    assert out.read_bytes() == raw
