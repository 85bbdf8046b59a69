"""Images packed for their boot, and profiles of images that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import parse_name
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.store.profiles import keep_profile
from p2pcloop.store.sources import known_source
from tests.support.programs import Node, Nodes

from .test_publish import copy, write_files

pytestmark = pytest.mark.e2e

SIZE = 32 << 20


def profile_of(image_id: bytes, *runs: tuple[int, int]) -> bytes:
    """A profile of blocks, as a home keeps one: not signed."""
    touches = [Touch(start, count, at) for at, (start, count) in enumerate(runs)]
    return pack_profile(Profile(image_id, SIZE, 0, pack_touches(touches)))


def write_profile(to: Path, *runs: tuple[int, int]) -> Path:
    """The file of a profile of an image that no node has."""
    to.write_bytes(profile_of(bytes(32), *runs))
    return to


def record(node: Node, image_id: str, *runs: tuple[int, int]) -> None:
    """Have a node keep a profile, as if it had booted an image."""
    keep_profile(node.home, profile_of(bytes.fromhex(image_id), *runs))


def optimize(node: Node, *words: str | Path) -> dict[str, Any]:
    return node.json("optimize", *words)


def exported(node: Node, ref: str, to: Path) -> bytes:
    node.run("export", ref, to, "--force")
    return to.read_bytes()


def test_what_a_boot_reads_lies_together_and_the_rest_stays_where_it_is(
    nodes: Nodes, image: Path, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop, "tiny")
    refused = seeder.run("optimize", seeded["name"], "--name", "tiny", code=7)
    assert "boot it once" in refused.err
    reader.json("fetch", seeded["link"])
    one = write_profile(tmp_path / "one", (1600, 300), (0, 200))
    made = optimize(seeder, seeded["name"], "--name", "fast", "--profile", one)
    assert (made["version"], made["layers"], made["profile"]) == (1, 2, True)
    assert made["stored_blocks"] + made["zero_blocks"] == 500
    assert made["replaced"] is False
    # A node that has the base fetches the layer on top, and reads what all others read.
    fetched = reader.json("fetch", made["link"])
    assert fetched["bytes_received"] < made["stored"] + made["index"] + 100_000
    assert exported(reader, made["link"], tmp_path / "out") == image.read_bytes()
    shown = reader.json("profile", "show", made["link"])
    assert (shown["origin"], shown["blocks"], shown["of"]) == ("attached", 500, None)
    assert shown["fetched"] == made["stored"]

    # The same again is no version; another profile takes the place of the first.
    again = optimize(seeder, seeded["name"], "--name", "fast", "--profile", one)
    assert (again["changed"], again["manifest"]) == (False, made["manifest"])
    other = write_profile(tmp_path / "other", (1700, 300))
    second = optimize(seeder, made["name"], "--name", "fast", "--profile", other)
    assert (second["version"], second["layers"], second["replaced"]) == (2, 2, True)
    assert exported(seeder, made["name"], tmp_path / "out") == image.read_bytes()
    versions = seeder.json("log", made["name"])["versions"]
    assert {version["parent"]["manifest"] for version in versions} == {seeded["manifest"]}


def test_a_layer_that_changes_something_is_never_replaced(
    nodes: Nodes, image: Path, tmp_path: Path
) -> None:
    node = nodes.make()
    one = write_profile(tmp_path / "one", (0, 700))
    refused = node.run("optimize", image, "--name", "tiny", code=7)
    assert "boot it once" in refused.err
    assert node.torrents() == {}
    # A raw image is seeded first.
    made = optimize(node, image, "--name", "tiny", "--profile", one)
    assert (made["version"], made["layers"]) == (2, 2)
    again = optimize(node, image, "--name", "tiny", "--profile", one)
    assert (again["changed"], again["version"]) == (False, 2)
    new = copy(image, tmp_path / "new.img")
    write_files(new, tmp_path, note=b"for all\n")
    assert node.json("publish", new, "--name", "tiny")["layers"] == 3
    # Known for the version before; the layer on top has other blocks.
    third = optimize(node, made["name"], "--name", "tiny")
    assert (third["version"], third["layers"], third["replaced"]) == (4, 4, False)
    assert exported(node, made["name"], tmp_path / "out") == new.read_bytes()
    # Seeded again, the image takes nothing back, unless the user says so.
    kept = optimize(node, image, "--name", "tiny", "--profile", one)
    assert (kept["version"], kept["changed"]) == (4, False)
    words = ("--name", "tiny", "--profile", one, "--as-new-version")
    back = optimize(node, image, *words)
    assert (back["version"], back["layers"]) == (6, 2)
    assert exported(node, made["name"], tmp_path / "out") == image.read_bytes()


def test_a_private_image_tells_its_profile_only_when_told_to(
    nodes: Nodes, image: Path, tmp_path: Path
) -> None:
    node, reader = nodes.make(), nodes.make()
    link = node.json("publish", image, "--name", "secret", "--private")["link"]
    one = write_profile(tmp_path / "one", (0, 300))
    words = (link, "--name", "secret", "--profile", one)
    made = optimize(node, *words)
    assert (made["layers"], made["profile"]) == (2, False)
    assert parse_link(made["link"]).secret == parse_link(link).secret
    # Sealed otherwise each time, and yet the same.
    again = optimize(node, made["name"], "--name", "secret", "--profile", one)
    assert (again["changed"], again["version"]) == (False, 2)
    assert exported(reader, made["link"], tmp_path / "out") == image.read_bytes()
    record(node, made["image_id"], (0, 9))
    file = tmp_path / "mine.profile"
    node.run("profile", "export", made["name"], file)
    done = node.run("profile", "attach", made["name"], file, "--json")
    assert "anyone can see" in done.err
    assert (json.loads(done.out)["version"], json.loads(done.out)["profile"]) == (3, True)
    # What its publisher told once is told on.
    third = optimize(node, made["name"], "--name", "secret", "--profile", file)
    assert (third["version"], third["profile"], third["replaced"]) == (4, True, True)


def test_a_profile_of_an_image_that_is_somebody_elses(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    owner, helper = nodes.make(), nodes.make()
    seeded = owner.seed(cloop, "tiny")
    record(helper, helper.json("info", seeded["link"])["image_id"], (1600, 40), (0, 60))
    recorded = helper.json("profile", "show", seeded["name"])
    assert recorded["origin"] == "recorded"
    file = tmp_path / "tiny.profile"
    helper.run("profile", "export", seeded["name"], file)
    # Kept by the helper, nothing of the owner's is changed; the owner publishes it.
    kept = helper.json("profile", "attach", seeded["name"], file)
    assert kept == {"name": seeded["name"], "changed": False}
    attached = owner.json("profile", "attach", seeded["name"], file)
    assert (attached["version"], attached["image_id"]) == (2, seeded["image_id"])
    # A home that forgets what is kept has what was attached.
    owner.run("profile", "forget", seeded["name"])
    assert owner.json("profile", "show", seeded["name"])["origin"] == "attached"
    # And the one who has it makes a version of their own.
    made = optimize(helper, seeded["name"], "--name", "fast")
    assert made["stored_blocks"] + made["zero_blocks"] == recorded["blocks"]
    shown = owner.json("profile", "show", made["link"])
    assert (shown["origin"], shown["blocks"]) == ("attached", recorded["blocks"])


def test_an_image_file_below_the_newest_version_optimizes_that(
    nodes: Nodes, image: Path, cloop: Path, tmp_path: Path
) -> None:
    """What was published since is not taken back."""
    node = nodes.make()
    seeded = node.seed(cloop, "tiny")
    new = copy(image, tmp_path / "new.img")
    write_files(new, tmp_path, own=b"own")
    assert node.json("publish", new, "--name", "tiny")["version"] == 2
    profile = write_profile(tmp_path / "one", (1600, 300))
    made = optimize(node, cloop, "--name", "tiny", "--profile", profile)
    assert (made["version"], made["layers"]) == (3, 3)
    assert exported(node, seeded["name"], tmp_path / "out") == new.read_bytes()
    again = node.run("optimize", cloop, "--name", "tiny", "--profile", profile)
    assert "version 3 (optimized) lies on this file" in again.err
    assert node.json("seed", cloop, "--name", "tiny")["changed"] is False


@pytest.mark.parametrize("stays", ["with a change", "optimized"])
def test_the_file_that_was_optimized_last_is_the_source(
    nodes: Nodes, image: Path, cloop: Path, tmp_path: Path, stays: str
) -> None:
    """Where the newest version stays, too: its next content is the next version."""
    node, profile = nodes.make(), write_profile(tmp_path / "one", (1600, 300))
    words = "--name", "tiny", "--profile", profile
    if stays == "optimized":
        name = parse_name(optimize(node, cloop, *words)["name"])
    else:
        name = parse_name(node.seed(cloop, "tiny")["name"])
        new = copy(image, tmp_path / "new.img")
        write_files(new, tmp_path, own=b"own")
        node.json("publish", new, "--name", "tiny")
    moved = copy(cloop, tmp_path / "moved.cloop")
    optimize(node, moved, *words)
    assert known_source(node.home, name) == moved
