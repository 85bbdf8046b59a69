"""Versions of an image as users meet them: published, found, gone back to, and refused."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import MismatchError, NotHereError, UsageError
from p2pcloop.formats.link import parse_link
from tests.support.programs import Node, Nodes
from tests.support.waiting import BOUND

pytestmark = pytest.mark.e2e

SIZE = 1 << 20


def image(seed: int) -> bytes:
    """An image of which a version differs from the next in a few blocks."""
    data = bytearray(random.Random(0).randbytes(SIZE))
    for version in range(1, seed + 1):
        data[version << 16 : (version << 16) + 8192] = random.Random(version).randbytes(8192)
    return bytes(data)


def publish(node: Node, tmp_path: Path, version: int, *options: str) -> dict[str, Any]:
    path = tmp_path / f"v{version}.img"
    path.write_bytes(image(version))
    return node.json(
        "publish", path, "--raw", "--name", "disk", "-m", f"change {version}", *options
    )


def test_publishes_at_once_under_one_label_are_one_after_the_other(
    nodes: Nodes, tmp_path: Path
) -> None:
    node = nodes.make()
    name = publish(node, tmp_path, 1)["name"]
    with ExitStack() as stack:
        with node.home.publishing("disk", lambda: None):
            running = []
            for version in (2, 3):
                path = tmp_path / f"v{version}.img"
                path.write_bytes(image(version))
                words = ("publish", path, "--raw", "--name", "disk", "--json")
                running.append(stack.enter_context(node.started(*words)))
            for process in running:
                assert process.stderr is not None
                assert name in next(line for line in process.stderr if line.startswith("waiting"))
            node.json("publish", tmp_path / "v1.img", "--raw", "--name", "another")
        told = [json.loads(process.communicate(timeout=BOUND)[0]) for process in running]
    assert sorted(each["version"] for each in told) == [2, 3]
    assert [each["version"] for each in node.json("log", name)["versions"]] == [3, 2, 1]


def test_versions_are_told_found_and_gone_back_to(nodes: Nodes, tmp_path: Path) -> None:
    publisher, reader = nodes.make(), nodes.make()
    links = [publish(publisher, tmp_path, version)["link"] for version in (1, 2)]
    name = str(parse_link(links[0]).name)
    assert reader.json("info", links[0])["version"] == 1
    links.append(publish(publisher, tmp_path, 3)["link"])

    assert reader.json("info", name)["version"] == 1
    updated = reader.json("update", name)
    assert (updated["version"], updated["before"], updated["message"]) == (3, 1, "change 3")
    assert "stays at version 3" in reader.run("update", name).out
    versions = _told_by_log(reader, name)
    reader.run("name", "add", "disk", name)
    for version in (1, 2, 3):
        out = tmp_path / f"out{version}.img"
        reader.run("export", "disk", out, "--at", str(version))
        assert out.read_bytes() == image(version)
    assert reader.json("info", "disk")["version"] == 3

    went_back = reader.run("info", links[0], code=MismatchError.exit_code)
    assert "a name never goes back" in went_back.err
    assert "--at 1" in went_back.err
    assert reader.json("info", links[0], "--at", "1")["version"] == 1
    reader.run("info", name, "--at", "9", code=NotHereError.exit_code)

    assert "no source could tell" in publisher.run("update", name).out  # it does not ask itself
    assert publisher.json("status")["mirrors"] == []
    missing = reader.run("update", str(tmp_path / "none"), code=NotHereError.exit_code)
    assert "there is no file" in missing.err

    publisher.run("daemon", "stop")  # what is known needs no other node
    assert reader.json("log", name)["versions"] == versions
    assert reader.json("update", name)["problems"] != []
    alone = reader.run("update", name)
    assert "stays at version 3: no source could tell its newest one" in alone.out
    [problem] = alone.err.splitlines()
    assert problem.count("http://") == 1


def _told_by_log(reader: Node, name: str) -> list[dict[str, Any]]:
    """Three versions, each made from the one before."""
    versions: list[dict[str, Any]] = reader.json("log", name)["versions"]
    assert [version["version"] for version in versions] == [3, 2, 1]
    assert [version["message"] for version in versions] == ["change 3", "change 2", "change 1"]
    assert [version["missing"] for version in versions] == [None, None, None]
    assert all(0 < version["added"] < SIZE / 10 for version in versions[:2])
    assert versions[2]["added"] > SIZE / 2
    text = reader.run("log", name).out.splitlines()
    assert text[0] == name
    for line, version in zip(text[1:], versions, strict=True):
        assert version["message"] in line
    return versions


def test_a_mirror_in_a_directory_tells_the_history(nodes: Nodes, tmp_path: Path) -> None:
    publisher, reader = nodes.make(), nodes.make()
    base = publish(publisher, tmp_path, 1)
    for version in (2, 3):
        path = tmp_path / f"v{version}.img"
        path.write_bytes(image(version))
        made = publisher.json("publish", path, "--raw", "--name", "other", "--base", base["name"])
    name = made["name"]
    told = publisher.json("log", name)["versions"]
    publisher.run("mirror", name, tmp_path / "www")
    publisher.run("daemon", "stop")
    assert reader.json("log", f"{tmp_path}/www/{name}")["versions"] == told
    text = reader.run("log", name).out
    assert text.count(f"made from {base['name']}, version 1") == 1


def test_a_version_whose_history_nobody_has_says_so(nodes: Nodes, tmp_path: Path) -> None:
    publisher, reader = nodes.make(), nodes.make()
    for version in (1, 2):
        published = publish(publisher, tmp_path, version)
    name = published["name"]
    reader.run("info", published["link"])
    publisher.run("daemon", "stop")
    _, only, *reason = reader.run("log", name).out.splitlines()
    assert only.endswith("change 2")
    assert "what came before it cannot be told" in " ".join(reason)
    gone = reader.run("info", name, "--at", "1", code=NotHereError.exit_code)
    *waited, why = gone.err.splitlines()
    assert len(waited) == 2, "within 3 s it says that it waits, and what to do"
    assert "no source that was asked has it" in why
    assert reader.json("info", name)["version"] == 2


def test_one_key_in_two_homes_makes_a_fork(nodes: Nodes, tmp_path: Path) -> None:
    one, other, reader = nodes.make(), nodes.make(), nodes.make()
    one.run("key", "new", "default")
    one.run("key", "export", "default", tmp_path / "key")
    other.run("key", "import", "default", tmp_path / "key")
    first = publish(one, tmp_path, 1)
    second = publish(other, tmp_path, 2, "--first-version")  # which is not so
    assert first["name"] == second["name"]
    reader.run("info", first["link"])
    before = reader.home.names.read_bytes()
    told = reader.run("info", second["link"], code=MismatchError.exit_code)
    assert told.err.startswith("p2pcloop: fork: ")
    assert first["manifest"] in told.err
    assert second["manifest"] in told.err
    assert reader.home.names.read_bytes() == before
    other.run("info", first["link"], code=MismatchError.exit_code)
    assert publish(other, tmp_path, 3)["version"] == 2  # counts on, and the fork is over
    third = other.json("info", first["name"])
    assert reader.json("info", third["link"])["version"] == 2


def test_a_protected_key_signs_with_its_passphrase_alone(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.make()
    node.environment = node.environment | {"P2PCLOOP_PASSPHRASE": "correct horse"}
    node.run("key", "new", "default", "--passphrase")
    assert publish(node, tmp_path, 1)["version"] == 1
    (tmp_path / "v.img").write_bytes(image(2))
    words = ("publish", tmp_path / "v.img", "--raw", "--name", "disk")
    node.environment["P2PCLOOP_PASSPHRASE"] = "wrong"
    refused = node.run(*words, code=MismatchError.exit_code)
    assert refused.err.startswith("p2pcloop: that is not the passphrase of the key")
    assert len(refused.err.splitlines()) == 1
    del node.environment["P2PCLOOP_PASSPHRASE"]
    refused = node.run(*words, code=UsageError.exit_code)
    assert "set P2PCLOOP_PASSPHRASE" in refused.err
    assert "correct horse" not in node.tail()


def test_a_directory_alone_serves_all_that_an_image_is(nodes: Nodes, tmp_path: Path) -> None:
    publisher, reader, other = nodes.make(), nodes.make(), nodes.make()
    for version in (1, 2):
        published = publish(publisher, tmp_path, version)
    name, folder, out = published["name"], tmp_path / "mirror", tmp_path / "out.img"
    publisher.run("mirror", name, folder)
    publisher.run("daemon", "stop")
    reader.run("export", f"{folder}/{name}", out)
    assert out.read_bytes() == image(2)
    out.unlink()
    assert reader.json("info", name)["here_share"] == 1
    [pack, *_] = (folder / "data").glob("*/pack")
    pack.write_bytes(bytes(pack.stat().st_size))
    refused = other.run("export", f"{folder}/{name}", out, code=MismatchError.exit_code)
    assert "is not what the manifest says" in refused.err
    assert not out.exists()
    assert not other.home.names.exists()
    assert list(other.home.torrents.iterdir()) == []
    assert list(other.home.manifests.iterdir()) == []
