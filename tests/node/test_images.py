"""The images of a home: listed, removed, withdrawn, named in short, and keys that move house."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import BusyError, MismatchError, NotHereError, UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.lease import Lease
from p2pcloop.store.overlays import register_overlay
from tests.support.images import make_image, write_cloop_file
from tests.support.programs import Node, Nodes

RAW = make_image(400_000)


@pytest.fixture
def publisher(nodes: Nodes) -> Node:
    return nodes.make()


@pytest.fixture
def seeded(publisher: Node, tmp_path: Path) -> dict[str, Any]:
    """A cloop that is served where it lies."""
    return publisher.seed(write_cloop_file(tmp_path / "disk.cloop", RAW))


def images(node: Node, *options: str) -> dict[int, dict[str, Any]]:
    """What `images` tells, by version."""
    return {each["version"]: each for each in node.json("images", *options)["images"]}


def published(node: Node, tmp_path: Path, number: int) -> dict[str, Any]:
    """Version `number` of a raw image; they differ in a few blocks."""
    data = bytearray(RAW.ljust(4096 * 100, b"\0"))
    data[:4096] = bytes([number]) * 4096
    path = tmp_path / "disk.img"
    path.write_bytes(data)
    return node.json("publish", path, "--name", "disk", "--raw")


def test_images_tells_what_is_here_of_whom_with_p2pcloopd_or_without(
    nodes: Nodes, publisher: Node, seeded: dict[str, Any], tmp_path: Path
) -> None:
    reader = nodes.make()
    assert "no image is known" in reader.run("images").out
    [facts] = images(publisher).values()
    assert (facts["name"], facts["here_share"], facts["seeded"]) == (seeded["name"], 1, True)
    [listed] = publisher.json("status")["images"]
    assert (listed["name"], listed["have_bytes"]) == (seeded["name"], listed["size"])
    assert (facts["from"], facts["in_place"]) == ("published here", [str(tmp_path / "disk.cloop")])
    reader.json("info", seeded["link"])
    assert images(reader)[1]["here_share"] == 0
    assert images(reader)[1]["seeded"] is False
    reader.run("fetch", seeded["name"])
    reader.run("name", "add", "mine", seeded["name"])
    reader.run("daemon", "stop")
    [facts] = images(reader).values()
    assert (facts["short"], facts["from"], facts["here_share"]) == ("mine", "others", 1)
    assert (facts["seeded"], facts["in_place"]) == (False, [])
    told = reader.run("images").out
    assert "100 % of" in told
    assert "(mine)" in told


@pytest.mark.usefixtures("seeded")
def test_files_in_place_that_are_changed_or_gone_are_told(publisher: Node, tmp_path: Path) -> None:
    cloop = tmp_path / "disk.cloop"
    kept = cloop.read_bytes()
    cloop.unlink()
    cloop.write_bytes(bytes(len(kept)))
    for _ in range(2):
        [facts] = images(publisher).values()
        assert (facts["here_share"], facts["seeded"]) == (0, False)
        assert str(cloop) in facts["unserved"][0]
        assert "0 % of" in publisher.run("images").out
        publisher.run("daemon", "stop")
    cloop.unlink()
    assert "No such file" in publisher.run("images").out


def test_what_is_removed_is_gone_and_can_be_had_again(nodes: Nodes, seeded: dict[str, Any]) -> None:
    reader = nodes.make()
    reader.run("fetch", seeded["link"])
    torrents = reader.home.torrents
    assert any(torrents.iterdir())
    done = reader.json("rm", seeded["name"])
    assert (done["versions"], done["known"]) == ([1], False)
    assert done["freed"] > 0
    assert not any(torrents.iterdir())
    assert not any(reader.home.manifests.iterdir())
    assert images(reader) == {}
    reader.run("rm", seeded["name"], code=NotHereError.exit_code)
    reader.run("info", seeded["name"], code=NotHereError.exit_code)
    reader.run("fetch", seeded["link"])
    assert images(reader)[1]["here_share"] == 1


def test_what_is_in_use_pinned_or_below_an_overlay_is_not_removed(
    nodes: Nodes, seeded: dict[str, Any], tmp_path: Path
) -> None:
    reader = nodes.make()
    reader.run("fetch", seeded["link"])
    [facts] = images(reader).values()
    manifest = bytes.fromhex(facts["manifest"])

    def refused() -> str:
        return reader.run("rm", seeded["link"], code=BusyError.exit_code).err

    with Lease(reader.home, manifest, "the guest"):
        assert "reads from it" in refused()
    reader.run("pin", seeded["name"])
    assert "pinned" in refused()
    reader.run("unpin", seeded["name"])
    path = tmp_path / "mine.delta"
    image_id = bytes.fromhex(seeded["image_id"])
    Overlay.create(
        path, image_id=image_id, image_size=facts["size"], manifest_id=manifest, name=facts["name"]
    ).close()
    register_overlay(reader.home, path, manifest)
    assert str(path) in refused()
    assert images(reader)[1]["overlays"] == [str(path)]
    assert images(reader)[1]["here_share"] == 1
    path.unlink()
    assert reader.json("rm", seeded["link"])["versions"] == [1]


def test_a_version_shares_its_base_with_others_and_goes_alone(
    nodes: Nodes, publisher: Node, tmp_path: Path
) -> None:
    reader = nodes.make()
    links = [published(publisher, tmp_path, number)["link"] for number in (1, 2)]
    for link in links:
        reader.run("fetch", link)
    before = images(reader, "--all")
    assert set(before) == {1, 2}
    assert before[2]["stored"] > before[1]["stored"]
    done = reader.json("rm", links[1], "--at", "2")
    assert 0 < done["freed"] < before[1]["stored"]
    assert set(images(reader, "--all")) == {1}
    assert reader.json("info", str(parse_link(links[0]).name))["here_share"] == 1
    assert reader.json("update", str(parse_link(links[0]).name))["version"] == 2


def test_what_was_published_goes_by_order_only_and_its_numbers_go_on(
    publisher: Node, tmp_path: Path
) -> None:
    name = published(publisher, tmp_path, 1)["name"]
    err = publisher.run("rm", name, code=UsageError.exit_code).err
    assert "--published" in err
    assert "unpublish" in err
    assert images(publisher)[1]["here_share"] == 1
    assert publisher.json("rm", name, "--published")["known"] is True
    assert images(publisher)[1]["here_share"] == 0
    (tmp_path / "disk.img").write_bytes(RAW)
    assert publisher.json("seed", tmp_path / "disk.img", "--raw")["version"] == 2


def test_over_a_version_that_was_removed_all_is_published(publisher: Node, tmp_path: Path) -> None:
    published(publisher, tmp_path, 1)
    whole = published(publisher, tmp_path, 2)["stored"]
    publisher.run("rm", "disk", "--published")
    again = published(publisher, tmp_path, 3)
    assert (again["version"], again["base"]) == (3, None)
    assert again["stored"] > whole
    assert images(publisher)[3]["here_share"] == 1


def test_of_what_was_published_and_removed_only_the_newest_manifest_is_served(
    publisher: Node, tmp_path: Path
) -> None:
    first, second = (published(publisher, tmp_path, number) for number in (1, 2))
    before = parse_link(first["link"]).manifest_torrent.hex()
    assert before in publisher.torrents()
    told = publisher.run("status").out
    assert f"  {before} (manifest of {first['name']}, version 1)\n" in told
    assert publisher.json("rm", first["name"], "--published")["versions"] == [2, 1]
    [left] = publisher.torrents()
    assert left == parse_link(second["link"]).manifest_torrent.hex()
    assert publisher.json("seed", tmp_path / "disk.img", "--raw")["version"] == 3


def test_a_file_that_another_image_needs_is_not_told_as_served_no_more(
    nodes: Nodes, tmp_path: Path
) -> None:
    node = nodes.make()
    image, other = (
        write_cloop_file(tmp_path / f"{seed}.cloop", make_image(70_000, seed)) for seed in (1, 2)
    )
    for path, label in ((image, "one"), (image, "two"), (other, "other")):
        node.run("seed", path, "--raw", "--name", label)
    assert str(image) not in node.run("rm", "one", "--published").out
    assert f"{other} is no longer served" in node.run("rm", "other", "--published").out


def test_two_names_of_one_file_are_served_until_both_are_removed(
    publisher: Node, seeded: dict[str, Any], tmp_path: Path
) -> None:
    """What stays known of a removed version needs no data any more."""
    publisher.json("seed", tmp_path / "disk.cloop", "--name", "other")
    torrent = publisher.home.torrents / seeded["torrent"]
    assert publisher.json("rm", seeded["name"], "--published")["freed"] == 0
    assert torrent.exists(), "the other name needs it"
    assert publisher.json("rm", "other", "--published")["freed"] > 0
    assert not torrent.exists()
    again = publisher.json("seed", tmp_path / "disk.cloop", "--name", "other")
    assert (again["version"], again["changed"]) == (1, False)
    assert publisher.json("gc", "--quota", "0", code=11)["kept"]["published"] > 0


def test_a_copy_under_another_name_leaves_the_first_in_use(
    publisher: Node, seeded: dict[str, Any], tmp_path: Path
) -> None:
    first, copy = tmp_path / "disk.cloop", tmp_path / "copy.cloop"
    copy.write_bytes(first.read_bytes())
    told = publisher.run("seed", copy, "--raw", "--name", "other").out
    assert f"read from {first}, as before; {copy} takes over" in told
    listed = publisher.json("images")["images"]
    assert [each["in_place"] for each in listed] == [[str(first)]] * 2
    assert publisher.json("seed", copy, "--raw", "--name", "other")["torrent"] == seeded["torrent"]
    first.unlink()
    told = publisher.run("seed", copy, "--raw", "--name", "other").out
    assert f"read from {copy}: leave it there" in told


def test_a_withdrawal_is_passed_on_by_the_name(
    nodes: Nodes, publisher: Node, tmp_path: Path
) -> None:
    first = published(publisher, tmp_path, 1)
    reader, mirror = nodes.make(), tmp_path / "mirror"
    reader.run("fetch", first["link"])
    assert reader.run("unpublish", first["name"], code=MismatchError.exit_code)
    publisher.run("mirror", first["name"], mirror)

    for store in (publisher.home.root, publisher.home.torrents, publisher.home.manifests / "x"):
        assert "node's own" in publisher.run("mirror", "disk", store, code=UsageError.exit_code).err

    _withdraws(publisher)
    assert "was withdrawn" in reader.run("update", first["name"]).out
    for command in ("info", "fetch"):
        told = reader.run(command, first["name"], code=NotHereError.exit_code).err
        assert "it had my keys in it" in told
        assert "--at 1" in told
    assert reader.json("info", first["name"], "--at", "1")["version"] == 1
    assert images(reader)[2]["withdrawn"] is True
    versions = reader.json("log", first["name"])["versions"]
    assert [each["withdrawn"] for each in versions] == [True, False]

    publisher.run("mirror", "disk", mirror)
    third = nodes.make()
    place = f"{mirror}/{first['name']}"
    assert "withdrawn" in third.run("info", place, code=NotHereError.exit_code).err

    other = tmp_path / "other.img"
    other.write_bytes(RAW)
    words = ("seed", other, "--name", "disk", "--raw")
    err = publisher.run(*words, code=UsageError.exit_code).err
    assert "is withdrawn" in err
    assert "--as-new-version" in err

    again = published(publisher, tmp_path, 3)
    assert again["version"] == 3
    assert reader.json("update", first["name"])["withdrawn"] is False
    assert reader.json("info", first["name"])["version"] == 3


def _withdraws(publisher: Node) -> None:
    """A publisher withdraws its first version, and is told so from then on."""
    done = publisher.json("unpublish", "disk", "-m", "it had my keys in it")
    assert (done["version"], done["changed"]) == (2, True)
    assert publisher.json("unpublish", "disk")["changed"] is False
    assert "withdrawn by its publisher" in publisher.run("status").out
    err = publisher.run("rm", "disk", code=UsageError.exit_code).err
    assert "it is withdrawn; --published" in err
    assert "`p2pcloop unpublish`" not in err
    err = publisher.run("boot", "disk", code=NotHereError.exit_code).err
    assert "withdrawn" in err
    assert "it had my keys in it" in err


def test_a_key_that_was_imported_signs_no_second_version_1(
    nodes: Nodes, publisher: Node, tmp_path: Path
) -> None:
    first = published(publisher, tmp_path, 1)
    publisher.run("key", "export", "default", tmp_path / "backup.key")
    other = nodes.make()
    other.run("key", "import", "default", tmp_path / "backup.key")
    image = tmp_path / "disk.img"
    for command in ("publish", "seed"):
        refused = other.run(command, image, "--name", "disk", "--raw", code=UsageError.exit_code)
        assert "p2pcloop update LINK" in refused.err
    assert images(other) == {}
    other.run("update", first["link"])
    assert published(other, tmp_path, 2)["version"] == 2
    fresh = other.json("seed", image, "--name", "fresh", "--raw", "--first-version")
    assert fresh["version"] == 1
    image.write_bytes(RAW)
    assert other.json("seed", image, "--name", "fresh", "--raw")["version"] == 2


def test_a_key_whose_file_was_copied_signs_no_second_version_1(
    nodes: Nodes, publisher: Node, tmp_path: Path
) -> None:
    first = published(publisher, tmp_path, 1)
    image = tmp_path / "disk.img"
    file, folder, whole = nodes.make(), nodes.make(), nodes.make()
    file.home.create()
    shutil.copy2(publisher.home.keys / "default.key", file.home.keys)
    folder.home.create()
    shutil.copytree(publisher.home.keys, folder.home.keys, dirs_exist_ok=True)
    for other in (file, folder):
        for name in ("disk", "another"):
            words = ("seed", image, "--name", name, "--raw")
            refused = other.run(*words, code=UsageError.exit_code)
            assert "was not made in this home" in refused.err
            assert "p2pcloop update LINK" in refused.err
        other.run("update", first["link"])
        assert published(other, tmp_path, 2)["version"] == 2
        other.run(*words, code=UsageError.exit_code)
        assert other.json(*words, "--first-version")["version"] == 1
    publisher.run("daemon", "stop")
    shutil.copytree(publisher.root, whole.root, symlinks=True, dirs_exist_ok=True)
    assert published(whole, tmp_path, 2)["version"] == 2  # it knows what it published
    assert whole.json("seed", image, "--name", "another", "--raw")["version"] == 1


def test_a_copied_key_is_not_taken_for_one_of_this_home_once_a_name_is_known(
    nodes: Nodes, publisher: Node, tmp_path: Path
) -> None:
    first = published(publisher, tmp_path, 1)
    words = ("seed", tmp_path / "disk.img", "--raw", "--name")
    updated, told = nodes.make(), nodes.make()
    for other in (updated, told):
        other.home.create()
        shutil.copy2(publisher.home.keys / "default.key", other.home.keys)
    updated.run("update", first["link"])
    assert published(updated, tmp_path, 2)["version"] == 2
    assert told.json(*words, "new", "--first-version")["version"] == 1
    for other in (updated, told):
        refused = other.run(*words, "another", code=UsageError.exit_code)
        assert "was not made in this home" in refused.err


def test_a_key_by_its_first_characters_and_an_image_of_ones_own_by_its_label(
    nodes: Nodes, publisher: Node, seeded: dict[str, Any]
) -> None:
    key, label = str(parse_link(seeded["link"]).name).split("/")
    assert publisher.json("info", label)["name"] == seeded["name"]
    assert publisher.json("info", f"{key[:5]}/{label}")["name"] == seeded["name"]
    reader = nodes.make()
    err = reader.run("info", f"{key[:5]}/{label}", code=NotHereError.exit_code).err
    assert "give all of them" in err
    reader.run("info", label, code=NotHereError.exit_code)
    reader.run("info", seeded["link"])
    assert reader.json("info", f"{key[:5]}/{label}")["name"] == seeded["name"]
    reader.run("name", "add", "short", f"{key[:5]}/{label}")
    assert reader.json("info", "short")["name"] == seeded["name"]
