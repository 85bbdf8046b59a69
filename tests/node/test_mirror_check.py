"""`p2pcloop mirror --check`: a mirror as its readers will meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pcloop.cli.mirror import command
from p2pcloop.errors import FormatError, NotHereError, UnreachableError
from tests.support.programs import Node, Nodes
from tests.support.static_server import Fault, misbehaving, nginx, python_http_server

from .test_mirrors import Published, publish


@pytest.fixture
def image(nodes: Nodes, content: bytes, tmp_path: Path) -> Published:
    image = publish(nodes.start(), content, tmp_path / "m")
    (image.directory / "link.txt").write_text(f"{image.link.public()}\n")
    return image


def check(node: Node, url: str) -> list[str]:
    """The faults of the one image of a mirror."""
    [found] = node.call("check_mirror", url=url)["images"]
    faults: list[str] = found["faults"]
    return faults


def test_a_mirror_that_is_as_it_must_be(nodes: Nodes, image: Published) -> None:
    node = nodes.start()
    with nginx(image.directory) as web:
        found = node.call("check_mirror", url=web.url)
        assert found["base"] == web.url
        [told] = found["images"]
        assert told == {
            "name": str(image.link.name),
            "version": 1,
            "size": len(image.content),
            "faults": [],
        }
        assert check(node, f"{web.url}{image.link.name}") == []
        asked = {(each.path.rpartition("/")[2], each.status) for each in web.requests()}
        assert {("index", 206), ("pack", 206), ("link.txt", 200)} <= asked
    assert node.call("status")["torrents"] == []  # nothing is kept


def test_a_server_that_ignores_ranges_is_named_and_what_that_means(
    nodes: Nodes, image: Published
) -> None:
    node = nodes.start()
    with python_http_server(image.directory) as url:
        [fault] = check(node, url)
    assert fault.startswith(url)
    assert "ignores ranges" in fault
    assert "readers must take all 304.1 kB" in fault


@pytest.mark.parametrize("fault", [Fault.HALF_RANGE, Fault.WRONG_BYTES, Fault.IGNORES_RANGE])
def test_a_fault_is_told(nodes: Nodes, image: Published, fault: Fault) -> None:
    with misbehaving(image.directory, fault) as web:
        [told] = check(nodes.start(), web.url)
    assert web.url in told


def test_a_file_that_is_missing_is_told(nodes: Nodes, image: Published) -> None:
    [record] = image.directory.glob("@*/*")
    record.unlink()
    [pack] = image.directory.rglob("pack")
    pack.write_bytes(pack.read_bytes()[:-1])
    with nginx(image.directory) as web:
        absent, short = check(nodes.start(), web.url)
    assert str(image.link.name) in absent
    assert "404" in absent
    assert "pack" in short


def test_what_is_no_mirror_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.start()
    with nginx(tmp_path) as web:
        with pytest.raises(NotHereError, match=r"link\.txt"):
            node.call("check_mirror", url=web.url)
        (tmp_path / "link.txt").write_text("<html>")
        with pytest.raises(FormatError, match="something else than links"):
            node.call("check_mirror", url=web.url)
    with pytest.raises(UnreachableError):
        node.call("check_mirror", url=web.url)


def test_the_command(nodes: Nodes, image: Published) -> None:
    node = nodes.start()

    def run(*words: str) -> Any:
        return CliRunner().invoke(command, [*words, "--home", str(node.home.root)])

    with nginx(image.directory) as web:
        done = run("--check", web.url)
        assert done.output == f"{image.link.name}, version 1: all is well\n"
        assert done.exit_code == 0
    with python_http_server(image.directory) as url:
        done = run("--check", url, "--json")
        assert isinstance(done.exception, UnreachableError)
        assert "1 fault" in str(done.exception)
        assert len(json.loads(done.output)["images"][0]["faults"]) == 1
    assert "REF and DIRECTORY" in str(run().exception)
    assert "nothing but the URL" in str(run("@x/y", "d", "--check", "http://h/").exception)
