"""Homes and mirrors whose paths are long, no text, and hold a line break: commands work there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pcloop.client.daemon import stop_daemon
from p2pcloop.store.home import Home
from tests.support.images import make_image, padded, write_cloop_file
from tests.support.programs import Nodes
from tests.support.waiting import BOUND

PROGRAM = [sys.executable, "-c", "from p2pcloop.cli.main import main; main()"]
RAW = make_image(600_000)

Command = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All that is odd at once: one run of the commands takes seconds."""
    folder = tmp_path / ("d" * 120) / os.fsdecode(b"caf\xe9\nau lait") / "-rf %s $(x) 'q'"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def command(folder: Path) -> Iterator[Command]:
    """Run a command on the home NAME in the odd folder; its standard output."""
    homes = set()

    def run(name: str, *words: str | Path) -> str:
        homes.add(Home.at(folder / name))
        done = subprocess.run(
            [*PROGRAM, *words, "--home", folder / name],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    for home in homes:
        stop_daemon(home)


def test_an_image_goes_from_one_odd_home_to_another(folder: Path, command: Command) -> None:
    cloop = write_cloop_file(folder / "image.cloop", RAW)
    seeded = json.loads(command("seeder", "seed", cloop, "--name", "image", "--json"))
    command("reader", "fetch", seeded["link"])
    command("reader", "export", seeded["name"], folder / "out.img")
    assert (folder / "out.img").read_bytes() == padded(RAW, 65536)
    command("seeder", "mirror", seeded["name"], folder / "mirror")
    at_mirror = f"{folder}/mirror/{seeded['name']}"
    read = json.loads(command("third", "info", at_mirror, "--json"))
    assert read["image_id"] == seeded["image_id"]
    command("third", "export", at_mirror, folder / "again.img")
    assert (folder / "again.img").read_bytes() == padded(RAW, 65536)
    assert json.loads(command("third", "status", "--json"))["home"] == str(folder / "third")


@pytest.mark.parametrize(
    "name", ["names.msgpack", "pins.msgpack", "ports.msgpack", "short-names", "link-places"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(nodes: Nodes, name: str) -> None:
    node = nodes.make()
    node.start()
    stop_daemon(node.home)
    path = node.home.root / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for words in (("images",), ("daemon", "start"), ("status",)):
        done = subprocess.run(
            [*PROGRAM, *words, "--home", str(node.home.root)],
            capture_output=True,
            timeout=BOUND,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode in (0, 2, 3, 9), done.stderr
    stop_daemon(node.home)
