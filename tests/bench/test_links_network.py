"""Slow links of real namespaces are as slow as they should be, and a guest boots over one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import libtorrent as lt
import pytest

from bench.guests import pinned_cpu
from bench.harness import Bench, BenchError
from bench.links import control, ours, torrents
from bench.links.boots import Plan, boot_in_turn, boot_once, run_link
from bench.links.link import Link
from bench.links.network import (
    Host,
    Traffic,
    is_listening,
    network,
    parse_traffic,
    why_not,
)
from bench.links.rig import Boot, Rig, TookTooLongError
from bench.links.sample import Sample
from tests.support.programs import P2PCLOOP
from tools.console import NotInTimeError
from tools.tiny_image import build_tiny_image

_WHY_NOT = why_not()
needs_links = pytest.mark.skipif(_WHY_NOT is not None, reason=f"no slow links here: {_WHY_NOT}")

DEVICES = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       5       1    0    0    0     0          0         0        5       1    0    0
  eth0: 2604070    1800    0    0    0     0          0         0    86616    1300    0    0
"""
SOCKETS = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:2A39 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 0100007F:1AE1 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="p2pl-") as directory:
        yield Path(directory)


@pytest.fixture
def short_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_SETTLE", 0.2)
    monkeypatch.setattr(control, "_SECONDS", 0.5)


def bench(place: Path) -> Bench:
    return Bench(place / "tiny.img", place / "tiny.cloop", P2PCLOOP, place, pinned_cpu())


def test_counters_and_listeners_are_read_from_the_kernel() -> None:
    assert parse_traffic(DEVICES, "eth0") == Traffic(received=2604070, sent=86616)
    assert Traffic(5, 9).since(Traffic(2, 3)) == Traffic(3, 6)
    with pytest.raises(BenchError, match="no interface eth1"):
        parse_traffic(DEVICES, "eth1")
    assert is_listening(SOCKETS, 10809)
    assert not is_listening(SOCKETS, 6881)  # connected there, but no process listens


def test_who_may_not_make_links_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (why_not() or "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "ip (package iproute2)" in (why_not() or "")


@needs_links
@pytest.mark.usefixtures("short_transfers")
def test_a_link_has_its_rate_and_its_round_trip(place: Path) -> None:
    link = Link.parse("25Mbit+20ms")
    with network(link, ("seeder", "reader"), place) as (seeder, reader):
        rig = Rig(bench(place), place / "none", seeder, reader)
        found = control.plain_transfer(rig, link, place / "log")
        sent = seeder.traffic().sent
    assert found.round_trip >= link.delay  # never less; more where the machine is busy
    assert 0 < found.share <= control.MAX_RATE
    assert sent > found.share * link.rate * 0.5


@needs_links
@pytest.mark.interop
def test_hosts_see_one_another_and_nothing_else(place: Path) -> None:
    with network(Link.parse("8748"), ("seeder", "reader"), place) as (seeder, reader):
        with torrents.tracker(seeder, [(seeder, 6881)], place) as url:
            ask = [*reader.inside, "curl", "-sSf", "--noproxy", "*", f"{url}?info_hash=x"]
            answer = subprocess.run(ask, capture_output=True, check=True).stdout
        routes = [*reader.inside, "ip", "route", "get", "192.0.2.1"]
        assert subprocess.run(routes, capture_output=True, check=False).returncode
    assert lt.bdecode(answer) == {b"interval": 1800, b"peers": b"\x0a\x4d\x00\x01\x1a\xe1"}


def test_a_torrent_of_a_file_names_its_tracker_and_hashes(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(100_000))
    torrent = torrents.of_file(image, tmp_path / "files")
    path = torrent.write(tmp_path / "torrent", "http://10.77.0.1:8000/announce")
    told: Any = lt.bdecode(path.read_bytes())
    assert told[b"announce"] == b"http://10.77.0.1:8000/announce"
    info, content = told[b"info"], image.read_bytes()
    assert (info[b"name"], info[b"length"], info[b"piece length"]) == (b"image", 100_000, 65536)
    parts = (content[:65536], content[65536:])
    assert info[b"pieces"] == b"".join(hashlib.sha1(part).digest() for part in parts)
    assert (torrent.files / "image").samefile(image)


@needs_links
@pytest.mark.e2e
@pytest.mark.usefixtures("short_transfers")
def test_guests_boot_over_a_link_and_what_crossed_is_counted(place: Path) -> None:
    built = bench(place)
    build_tiny_image(built.image)
    subprocess.run(
        ["create_compressed_fs", "-B", "65536", "-L", "1", built.image, built.cloop],
        capture_output=True,
        check=True,
    )
    plan = Plan([ours.COLD], rounds=1, limit=300, group=None)
    run = run_link(Link.parse("8748+20ms"), plan, built, lambda _line: None)
    [local], [cold] = run.samples.values()
    assert not (local.exceeded or cold.exceeded)
    assert local.received == 0
    assert 0 < cold.sent < cold.received < built.cloop.stat().st_size * 1.2


class Reader:
    """A host at which 1000 bytes come in between one look at its counters and the next."""

    def __init__(self) -> None:
        self._looks = 0

    def traffic(self) -> Traffic:
        self._looks += 1
        return Traffic(1000 * self._looks, 0)


class Guest:
    """A console that says nothing, or all that is waited for."""

    def __init__(self, *, boots: bool) -> None:
        self._boots = boots

    def expect(self, pattern: str, timeout: float) -> None:
        if not self._boots:
            raise NotInTimeError(f"no {pattern} within {timeout}")


@pytest.mark.parametrize("ends", ["at the prompt", "before the prompt", "before the guest"])
def test_a_boot_that_takes_too_long_counts_as_more_than_that(place: Path, ends: str) -> None:
    @contextmanager
    def boot(_place: Path, _limit: float) -> Iterator[Guest]:
        if ends == "before the guest":
            raise TookTooLongError
        yield Guest(boots=ends == "at the prompt")

    plan = Plan([], rounds=1, limit=30, group=None)
    sample = boot_once(cast(Boot, boot), cast(Host, Reader()), place / "boot", plan)
    assert sample.exceeded == (ends != "at the prompt")
    assert (sample.seconds == 30) == sample.exceeded
    assert (sample.received, sample.usage) == (1000, None)
    assert not (place / "boot").exists()


def test_a_foreign_program_that_dies_is_left_out_and_one_of_ours_ends_the_run(place: Path) -> None:
    def contender(error: str = "") -> object:
        @contextmanager
        def boot(_place: Path, _limit: float) -> Iterator[Guest]:
            if error:
                raise BenchError(error)
            yield Guest(boots=True)

        return boot

    def run(**named: object) -> dict[str, list[Sample]]:
        given = cast("dict[str, Boot]", {"local": contender(), **named})
        return boot_in_turn(given, cast(Host, Reader()), place / "boot", plan, told.append)

    plan, told = Plan([], rounds=3, limit=30, group=None), list[str]()
    found = run(btfs=contender("it died"), p2pcloop=contender())
    assert {name: len(samples) for name, samples in found.items()} == {"local": 3, "p2pcloop": 3}
    assert told.count("btfs is left out: it died") == 1
    with pytest.raises(BenchError, match="it died"):
        run(btfs=contender(), p2pcloop=contender("it died"))
