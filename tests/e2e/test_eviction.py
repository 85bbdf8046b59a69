"""An image is evicted between two boots, and not during one."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.formats.link import parse_link
from tests.support.programs import Guest, Node, Nodes

pytestmark = pytest.mark.e2e

QUOTA = "300K"


def refused(node: Node, why: str) -> None:
    assert why in node.run("gc", "--quota", QUOTA, code=11).err


def test_an_evicted_image_boots_again(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    link, overlay = seeder.seed(cloop)["link"], tmp_path / "mine.delta"
    with Guest(reader, link, "--overlay", overlay) as guest:
        guest.prompt()
        refused(reader, "in use by running guests")
        guest.sh("md5sum /root/data > /root/sum && sync")
        refused(reader, "in use by running guests")
        guest.power_off()
    refused(reader, "lie below overlays")
    kept, name = overlay.read_bytes(), str(parse_link(link).name)
    overlay.unlink()
    before = reader.json("info", name)["here"]
    assert reader.json("gc", "--quota", QUOTA)["left"] <= 300 << 10
    assert reader.json("info", name)["here"] < before
    overlay.write_bytes(kept)
    with Guest(reader, name, "--overlay", overlay) as guest:
        guest.prompt()
        assert "OK" in guest.sh("md5sum -c /root/sum")
        guest.power_off()
    assert reader.json("verify", name)["bad"] == 0
