"""A file with the content of an older version takes nothing back that was published since."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import MismatchError, UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import parse_name
from p2pcloop.store.records import Records
from tests.support.programs import Node, Nodes
from tests.support.versions import overlay_on

pytestmark = pytest.mark.e2e

MiB = 1 << 20


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


def image(path: Path, seed: int, size: int = 2 * MiB) -> Path:
    """A file of its own content."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def publish(node: Node, file: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Publish as x; return the facts and what was told."""
    done = node.run("publish", file, "--raw", "--name", "x", "--json", *words)
    facts: dict[str, Any] = json.loads(done.out)
    return facts, done.err


def test_a_base_that_is_not_the_newest_version_is_the_older_content(
    node: Node, tmp_path: Path
) -> None:
    """The newest version does not lie on it, and has other content."""
    first, second = image(tmp_path / "first", 1), image(tmp_path / "second", 2)
    base = node.json("publish", first, "--raw", "--name", "base")["name"]
    publish(node, first, "--base", base)
    name = publish(node, second)[0]["name"]
    assert node.json("squash", "--all", name)["version"] == 3
    kept, told = publish(node, first, "--base", base)
    assert (kept["changed"], kept["version"]) == (False, 3)
    assert "version 1 was made of this content" in told
    # The newest version itself, without a word of older ones.
    same, told = publish(node, second, "--base", name)
    assert (same["changed"], same["version"]) == (False, 3)
    assert "was made of" not in told
    back, _ = publish(node, first, "--base", base, "--as-new-version")
    assert (back["changed"], back["version"]) == (True, 4)


def test_a_file_that_only_became_longer_is_not_cut_off_again(node: Node, tmp_path: Path) -> None:
    """No block of the older one differs from the newest version."""
    file = image(tmp_path / "first", 1)
    publish(node, file)
    longer = tmp_path / "longer"
    longer.write_bytes(file.read_bytes() + bytes(MiB))
    assert publish(node, longer)[0]["version"] == 2
    kept, told = publish(node, file)
    assert (kept["changed"], kept["version"], kept["size"]) == (False, 2, 3 * MiB)
    assert "version 1 was made of this content" in told


def test_what_only_a_new_version_could_have_is_not_lost_without_a_word(
    node: Node, tmp_path: Path
) -> None:
    first, second = image(tmp_path / "first", 1), image(tmp_path / "second", 2)
    publish(node, first)
    publish(node, second, "--append", "splash")
    for option in ["--private"], ["--append", ""], ["--append", "quiet"]:
        words = ["--raw", "--name", "x", *option]
        refused = node.run("publish", first, *words, code=UsageError.exit_code)
        assert f"{option[0]} is for a new version" in refused.err
        assert f"--as-new-version publishes the content of the file again, with {option[0]}" in (
            refused.err
        )
    kept, told = publish(node, first, "--append", "splash", "-m", "for a fresh link")
    assert (kept["changed"], kept["version"]) == (False, 2)
    assert "the message of -m is not used" in told
    sealed, _ = publish(node, first, "--as-new-version", "--private")
    assert (sealed["changed"], sealed["version"]) == (True, 3)
    assert parse_link(sealed["link"]).secret is not None
    # Where the newest version is private, that stays so.
    kept, told = publish(node, second, "--private")
    assert (kept["changed"], kept["link"]) == (False, sealed["link"])
    assert "the message" not in told


def test_a_file_of_another_odd_length_has_another_content(node: Node, tmp_path: Path) -> None:
    """Though both fill the same blocks: zeros follow the shorter one."""
    first, second = image(tmp_path / "first", 1, MiB + 100), image(tmp_path / "second", 2)
    longer = tmp_path / "longer"
    longer.write_bytes(first.read_bytes() + bytes(100))
    publish(node, first)
    publish(node, second)
    made, told = publish(node, longer)
    assert (made["changed"], made["version"], made["size"]) == (True, 3, MiB + 200)
    assert "was made of" not in told
    kept, told = publish(node, first)
    assert (kept["changed"], kept["version"]) == (False, 3)
    assert "version 1 was made of this content" in told


def test_an_overlay_that_is_given_another_base_needs_none(node: Node, tmp_path: Path) -> None:
    publish(node, image(tmp_path / "first", 1))
    publish(node, image(tmp_path / "second", 2))
    name = node.json("images")["images"][0]["name"]
    overlay = tmp_path / "mine.delta"
    first = Records(node.home).name(parse_name(name)).versions[1].id
    overlay_on(Records(node.home).manifest(first), overlay)
    words = ("publish", overlay, "--name", "mine")
    refused = node.run(*words, "--base", name, code=MismatchError.exit_code)
    assert f"{overlay} was made on another image: {name}, version 1" in refused.err
    assert "leave out --base" in refused.err
    assert node.json(*words)["version"] == 1
    to = tmp_path / "out"
    refused = node.run("export", name, to, "--overlay", overlay, code=MismatchError.exit_code)
    assert f"{name} --at 1\n" in refused.err
    node.run("export", name, to, "--overlay", overlay, "--at", "1")
    assert to.read_bytes() == (tmp_path / "first").read_bytes()
