"""What was changed goes from node to node as what it is: the changes, and little else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import parse_name
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.sources import known_source
from tests.support.ports import free_port
from tests.support.programs import Guest, Node, Nodes, tool

from .conftest import DATA

pytestmark = pytest.mark.e2e


def write_files(image: Path, tmp_path: Path, **files: bytes) -> None:
    """Put files into the root's home of an ext4 image."""
    for name, content in files.items():
        source = tmp_path / f"content-{name}"
        source.write_bytes(content)
        tool("debugfs", "-w", "-R", f"rm /root/{name}", image)
        tool("debugfs", "-w", "-R", f"write {source} /root/{name}", image)


def copy(image: Path, to: Path) -> Path:
    shutil.copyfile(image, to)
    to.chmod(0o644)
    return to


def publish(node: Node, *words: str | Path) -> dict[str, Any]:
    return node.json("publish", *words)


def test_a_pupils_overlay_boots_elsewhere(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    teacher, pupil, third = nodes.make(), nodes.make(), nodes.make()
    seeded = teacher.seed(cloop, "tiny")
    overlay = tmp_path / "mine.delta"
    with Guest(pupil, seeded["link"], "--overlay", overlay) as guest:
        guest.prompt()
        refused = pupil.run("publish", overlay, "--name", "mine", code=6)
        assert "is in use" in refused.err
        guest.sh("echo pupil > /root/mine && sync")
        guest.power_off()
    made = publish(pupil, overlay, "--name", "mine", "-m", "a file")
    assert (made["version"], made["changed"], made["base"]) == (1, True, seeded["name"])
    assert made["layers"] == 2
    assert made["unknown_blocks"] == 0
    assert made["stored"] < 100_000
    again = publish(pupil, overlay, "--name", "mine", "-m", "nothing new")
    assert (again["version"], again["changed"], again["manifest"]) == (1, False, made["manifest"])

    # The third has only the pupil's link; the base comes from a node that has it.
    with Guest(third, made["link"]) as guest:
        guest.prompt()
        assert guest.sh("cat /root/mine").split() == ["pupil"]
        # The pupil never read this, and has none of it.
        assert guest.sh("md5sum < /root/data").split()[0] == hashlib.md5(DATA).hexdigest()
        guest.power_off()

    # The same overlay, changed further: the new version holds only what is new since.
    with Guest(pupil, seeded["name"], "--overlay", overlay) as guest:
        guest.prompt()
        guest.sh("echo more > /root/more && sync")
        guest.power_off()
    more = publish(pupil, overlay, "--name", "mine", "-m", "another file")
    assert (more["version"], more["layers"]) == (2, 3)
    out = tmp_path / "out.img"
    pupil.run("export", more["name"], out)
    assert tool("debugfs", "-R", "cat /root/mine", out) == "pupil\n"
    assert tool("debugfs", "-R", "cat /root/more", out) == "more\n"


def test_a_reader_of_the_base_receives_the_delta_alone(
    nodes: Nodes, image: Path, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop, "tiny")
    reader.json("fetch", seeded["link"])
    new = copy(image, tmp_path / "new.img")
    write_files(new, tmp_path, shell=Path("/bin/bash").read_bytes(), data=b"shorter\n")
    made = publish(seeder, new, "--name", "tiny", "--base", seeded["name"])
    assert (made["version"], made["layers"]) == (2, 2)
    # The file that went away left blocks that are as they were: nothing of it is packed.
    assert made["stored"] < Path("/bin/bash").stat().st_size
    fetched = reader.json("fetch", made["link"])
    assert fetched["bytes_received"] < made["stored"] + made["index"] + 200_000
    out = tmp_path / "out.img"
    reader.run("export", made["name"], out)
    assert out.read_bytes() == new.read_bytes()
    # By maps alone: at most what the new version's layer holds, and what its files brought.
    found = reader.json("diff", "--at", "1", made["name"], made["name"])
    assert made["stored_blocks"] <= found["blocks"] <= made["stored_blocks"] + 1000


def test_nothing_changed_is_no_new_version_but_may_have_a_name_of_its_own(
    nodes: Nodes, image: Path
) -> None:
    node = nodes.make()
    seeded = node.seed(image, "tiny")
    again = publish(node, image, "--name", "tiny")
    assert (again["changed"], again["version"], again["manifest"]) == (
        False,
        1,
        seeded["manifest"],
    )
    own = publish(node, image, "--name", "own", "--base", seeded["name"])
    assert (own["changed"], own["version"], own["layers"], own["stored"]) == (True, 1, 1, 0)
    assert own["image_id"] == seeded["image_id"]
    assert publish(node, image, "--name", "own", "--base", seeded["name"])["changed"] is False
    assert list(node.home.tmp.iterdir()) == []


def test_the_content_of_an_older_version_is_published_on_purpose_only(
    nodes: Nodes, image: Path, cloop: Path, tmp_path: Path
) -> None:
    """To publish again, for a fresh link, takes nothing back that was published since."""
    node = nodes.make()
    new = copy(image, tmp_path / "new.img")
    name = publish(node, cloop, "--name", "tiny")["name"]
    write_files(new, tmp_path, own=b"own")
    second = publish(node, new, "--name", "tiny", "-m", "own")
    assert second["version"] == 2
    newest = second
    for file, version in ((cloop, 1), (image, 1), (new, 2)):
        if version == 2:
            third = copy(new, tmp_path / "third.img")
            write_files(third, tmp_path, own=b"other")
            newest = publish(node, third, "--name", "tiny")
        again = node.run("publish", file, "--name", "tiny", "--json")
        facts = json.loads(again.out)
        assert f"version {version} was made of this content" in again.err
        assert (facts["changed"], facts["manifest"]) == (False, newest["manifest"])
        assert facts["link"] == newest["link"]
        assert known_source(node.home, parse_name(name)) == file
    refused = node.run("publish", new, "--name", "tiny", "--append", "quiet", code=2)
    assert "--as-new-version" in refused.err
    assert len(node.json("log", name)["versions"]) == 3
    back = publish(node, new, "--name", "tiny", "--as-new-version")
    assert (back["version"], back["image_id"] != newest["image_id"]) == (4, True)
    assert publish(node, new, "--name", "tiny")["changed"] is False

    # A withdrawal is no more taken back by mistake.
    node.run("unpublish", "tiny")
    refused = node.run("publish", cloop, "--name", "tiny", code=2)
    assert "is withdrawn, by version 5" in refused.err
    assert publish(node, cloop, "--name", "tiny", "--as-new-version")["version"] == 6


def test_versions_are_squashed_to_the_same_content(
    nodes: Nodes, image: Path, tmp_path: Path
) -> None:
    node = nodes.make()
    new = copy(image, tmp_path / "new.img")
    name = node.seed(image, "tiny")["name"]
    shell = Path("/bin/bash").read_bytes()
    for step in range(3):
        write_files(new, tmp_path, part=shell[: (step + 1) * 200_000], own=b"%d\n" % step)
        assert publish(node, new, "--name", "tiny")["version"] == step + 2
    squashed = node.json("squash", name)
    assert (squashed["version"], squashed["layers"], squashed["changed"]) == (5, 2, True)
    assert node.json("diff", "--at", "4", name, name)["blocks"] == 0
    out = tmp_path / "out.img"
    node.run("export", name, out)
    assert out.read_bytes() == new.read_bytes()
    assert node.json("squash", name)["changed"] is False
    whole = node.json("squash", name, "--all")
    assert (whole["version"], whole["layers"]) == (6, 1)
    node.run("export", name, out, "--force")
    assert out.read_bytes() == new.read_bytes()
    versions = node.json("log", name)["versions"]
    assert [version["version"] for version in versions] == [6, 5, 4, 3, 2, 1]
    assert all(version["missing"] is None for version in versions)
    assert [version["message"] for version in versions[:3]] == ["squashed", "squashed", ""]
    # Only the user who signs it.
    other = nodes.make()
    refused = other.run("squash", whole["link"], code=5)
    assert "is not signed by this key" in refused.err


def test_a_private_image_stays_private(nodes: Nodes, image: Path, tmp_path: Path) -> None:
    node, reader = nodes.make(), nodes.make()
    made = publish(node, image, "--name", "secret", "--private")
    link = parse_link(made["link"])
    assert link.secret is not None
    new = copy(image, tmp_path / "new.img")
    write_files(new, tmp_path, note=b"for few\n")
    done = node.run("publish", new, "--name", "secret", "--json")
    assert "it is private" in done.err
    second = json.loads(done.out)
    assert parse_link(second["link"]).secret == link.secret
    out = tmp_path / "out.img"
    refused = reader.run("export", str(parse_link(second["link"]).public()), out, code=2)
    assert "private" in refused.err
    assert not out.exists()
    # Who has the key reads both layers; who has it not seeds them.
    reader.run("export", second["link"], out)
    assert out.read_bytes() == new.read_bytes()
    for pack in (node.root / "torrents").glob("*/data/*/pack"):
        assert b"for few" not in pack.read_bytes()


@pytest.mark.interop
def test_images_of_other_programs(nodes: Nodes, image: Path, tmp_path: Path) -> None:
    node = nodes.make()
    name = node.seed(image, "tiny")["name"]
    new = copy(image, tmp_path / "new.img")
    write_files(new, tmp_path, note=b"written by debugfs\n")
    qcow2 = tmp_path / "new.qcow2"
    tool("qemu-img", "convert", "-c", "-O", "qcow2", new, qcow2)
    made = publish(node, qcow2, "--name", "from-qcow2", "--base", name)
    assert (made["layers"], made["changed"]) == (2, True)
    out = tmp_path / "out.img"
    node.run("export", made["name"], out)
    assert out.read_bytes() == new.read_bytes()

    # Grown and shrunk, by a tool of the field.
    tool("qemu-img", "resize", "-q", "-f", "raw", new, "48M")
    tool("resize2fs", "-f", new)
    grown = publish(node, new, "--name", "from-qcow2")
    assert (grown["version"], grown["size"]) == (2, 48 << 20)
    node.run("export", made["name"], out, "--force")
    assert out.read_bytes() == new.read_bytes()
    cloop = tmp_path / "new.cloop"
    tool("create_compressed_fs", "-q", "-B", "65536", "-L", "1", image, cloop)
    back = publish(node, cloop, "--name", "from-qcow2")
    assert (back["version"], back["size"]) == (3, image.stat().st_size)
    node.run("export", made["name"], out, "--force")
    assert out.read_bytes() == image.read_bytes()

    # An image that takes content from elsewhere would publish files of this machine.
    leak = tmp_path / "leak.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", leak)
    refused = node.run("publish", leak, "--name", "leak", code=2)
    assert "from another file" in refused.err


def test_a_base_that_nobody_has_is_not_waited_for(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader = nodes.make(), nodes.make("waiting_after = 0.3")
    link = seeder.seed(cloop, "tiny")["link"]
    assert reader.json("diff", link, link)["blocks"] == 0  # brings headers and maps, no content
    facts = reader.json("info", link)
    seeder.run("daemon", "stop")
    overlay = tmp_path / "mine.delta"
    made = Overlay.create(
        overlay,
        image_id=bytes.fromhex(facts["image_id"]),
        image_size=facts["size"],
        manifest_id=bytes.fromhex(facts["manifest"]),
    )
    with made:
        made.write(0, [memoryview(b"changed".ljust(8192, b"!"))])
        made.prepare_flush()()
    done = reader.run("publish", overlay, "--name", "mine", "--json")
    answer = json.loads(done.out)
    assert (answer["stored_blocks"], answer["unknown_blocks"]) == (2, 2)
    assert "2 blocks count as changed" in done.err


def test_what_is_public_and_announced_nowhere_is_told(nodes: Nodes, image: Path) -> None:
    told = "it is public, but announced nowhere"
    tracker = f"http://127.0.0.1:{free_port()}/announce"
    quiet, loud = nodes.make(), nodes.make(f"[discovery]\nannounce_trackers = ['{tracker}']\n")
    assert told not in quiet.run("seed", image, "--name", "x").err
    for node, lines in ((quiet, 1), (loud, 0)):
        said = node.run("publish", image, "--name", "y", "--public").err.splitlines()
        assert sum(told in line for line in said) == lines, said
        assert sum(f"dht true --home {node.home.root}`" in line for line in said) == lines, said


def test_what_publish_refuses(nodes: Nodes, image: Path, cloop: Path, tmp_path: Path) -> None:
    node = nodes.make()
    seeded = node.seed(image, "tiny")
    new = copy(image, tmp_path / "new.img")
    for words, code, said in (
        ((new, "--name", "a/b"), 2, "label"),
        ((new, "--name", "x", "--base", cloop), 2, "is a file"),
        ((new, "--name", "x", "--key", "nobody"), 7, "no key 'nobody'"),
        ((tmp_path / "none", "--name", "x"), 7, "no file"),
        ((new, "--name", "x", "--base", seeded["name"], "-m", "two\nlines"), 2, "message"),
    ):
        write_files(new, tmp_path, note=b"something\n")
        refused = node.run("publish", *words, code=code)
        assert said in refused.err, refused.err
    overlay = tmp_path / "mine.delta"
    with Guest(node, cloop, "--overlay", overlay) as guest:
        guest.prompt()
        guest.power_off()
    unknown = node.run("publish", overlay, "--name", "x", code=7)
    assert "--base" in unknown.err
    other = node.run("publish", overlay, "--name", "x", "--base", seeded["name"], code=5)
    assert "was made on another image: " in other.err
