"""A disk that is no multiple of 4 KiB stays as long as it is, wherever it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from p2pcloop.units import SECTOR_SIZE
from tests.support.programs import Guest, Nodes, read_until, tool

pytestmark = pytest.mark.e2e

TAIL = bytes(range(256)) * 6
"""Three sectors: as of a CD, and where a GPT has its copy."""


def test_a_disk_keeps_its_last_sectors(nodes: Nodes, image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(image.read_bytes() + TAIL)
    length = disk.stat().st_size
    seeder, reader = nodes.make(), nodes.make()
    link = seeder.json("seed", disk)["link"]
    assert reader.json("info", link)["size"] == length

    overlay = tmp_path / "mine.delta"
    with Guest(reader, link, "--overlay", overlay) as guest:
        guest.prompt()
        assert int(guest.sh("blockdev --getsize64 /dev/vda")) == length
        sums = guest.sh(f"tail -c {len(TAIL)} /dev/vda | md5sum").split()
        assert sums[0] == hashlib.md5(TAIL).hexdigest()
        guest.sh(
            f"dd if=/dev/zero of=/dev/vda bs={SECTOR_SIZE} seek={length // SECTOR_SIZE - 1}; sync"
        )
        guest.power_off()
    assert reader.json("info", overlay)["size"] == length

    socket = tmp_path / "s"
    with reader.started("block", link, "--nbd", f"unix:{socket}") as block:
        read_until(block, "serving")
        tool("nbdcopy", f"nbd+unix:///?socket={socket}", tmp_path / "copied.img")
    assert (tmp_path / "copied.img").read_bytes() == disk.read_bytes()

    reader.run("export", link, tmp_path / "mine.img", "--overlay", overlay)
    mine = (tmp_path / "mine.img").read_bytes()
    assert len(mine) == length
    assert mine[-len(TAIL) :] == TAIL[:-SECTOR_SIZE] + bytes(SECTOR_SIZE)
    published = reader.json("publish", overlay, "--name", "mine")
    assert published["size"] == length
    seeder.run("export", published["link"], tmp_path / "theirs.img")
    assert (tmp_path / "theirs.img").read_bytes() == mine
