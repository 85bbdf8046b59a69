"""What a guest deletes leaves the overlay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import Guest, Nodes

pytestmark = pytest.mark.e2e

WRITTEN = 4 << 20


def test_what_a_guest_deletes_leaves_the_overlay(cloop: Path, nodes: Nodes, tmp_path: Path) -> None:
    node, overlay = nodes.make(), tmp_path / "mine.delta"
    with Guest(node, cloop, "--overlay", overlay) as guest:
        guest.prompt()
        assert "discard" in guest.sh("grep ' / ext4' /proc/mounts")
        guest.sh(f"dd if=/dev/urandom of=/root/big bs=4096 count={WRITTEN // 4096}; sync")
        kept = node.json("info", overlay)
        guest.sh("rm /root/big; sync")
        guest.power_off()
    left = node.json("info", overlay)
    assert kept["changed"] > WRITTEN
    assert left["changed"] < kept["changed"] - WRITTEN + (1 << 20)
    assert left["zeroed"] >= kept["zeroed"] + WRITTEN
    assert left["room_on_disk"] < WRITTEN
