"""`p2pcloop picture`: the map of an image that is partly here, with p2pcloopd and without."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from pathlib import Path

from p2pcloop.errors import UsageError
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.store.profiles import keep_profile
from tests.support.images import write_cloop_file
from tests.support.programs import Nodes

SIZE = 4_000_000
RAW = random.Random(5).randbytes(SIZE - SIZE % 4096)


def test_a_map_tells_what_came_from_whom_and_what_a_boot_read(nodes: Nodes, tmp_path: Path) -> None:
    publisher, reader = nodes.make(), nodes.make()
    cloop = write_cloop_file(tmp_path / "disk.cloop", RAW)
    link = publisher.seed(cloop)["link"]
    name = reader.json("info", link)["name"]
    facts = reader.json("picture", name, "-o", tmp_path / "none.svg")
    assert (facts["name"], facts["version"], facts["size"]) == (name, 1, len(RAW))
    assert (facts["missing"], facts["senders"]) == (len(RAW), {})
    reader.run("fetch", link)
    own = publisher.json("picture", "image", "-o", tmp_path / "own.svg")
    assert (own["here"], own["senders"]) == (len(RAW), {"own": len(RAW)})
    facts = reader.json("picture", name, "-o", tmp_path / "fetched.svg")
    assert (facts["unused"], facts["missing"], facts["read"]) == (len(RAW), 0, 0)
    assert sum(facts["senders"].values()) == len(RAW)
    assert all("127.0.0.1:" in sender for sender in facts["senders"])
    image_id = bytes.fromhex(reader.json("info", name)["image_id"])
    touches = pack_touches([Touch(0, 16, 0), Touch(160, 1, 2500)])
    keep_profile(reader.home, pack_profile(Profile(image_id, len(RAW), 0, touches)))
    reader.run("daemon", "stop")
    facts = reader.json("picture", name, "-o", tmp_path / "read.svg")
    assert (facts["read"], facts["read_seconds"]) == (17 * 4096, 2.5)
    assert (facts["here"], facts["senders"]) == (2 * 65536, {"earlier": len(RAW)})
    assert reader.home.holder() is None
    assert "here" in (ET.parse(tmp_path / "read.svg").getroot()[1].text or "")


def test_a_file_has_a_map_too_and_no_picture_is_replaced(nodes: Nodes, tmp_path: Path) -> None:
    node, out = nodes.make(), tmp_path / "map.svg"
    cloop = write_cloop_file(tmp_path / "disk.cloop", RAW)
    assert "here" in node.run("picture", cloop, "-o", out).out
    hint = node.run("picture", cloop, "-o", out, code=UsageError.exit_code).err
    assert "is not replaced" in hint
    assert node.run("picture", cloop, "-o", "-").out == out.read_text()
    assert node.home.holder() is None
