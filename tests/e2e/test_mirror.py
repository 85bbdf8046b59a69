"""Images as static files: written, carried, served by web servers, good and bad ones."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.mirror import parse_path
from p2pcloop.formats.record import open_record
from tests.support.programs import Guest, Node, Nodes
from tests.support.static_server import Fault, busybox_httpd, misbehaving, nginx

pytestmark = pytest.mark.e2e


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def write(node: Node, ref: str, directory: Path, *options: str) -> str:
    link: str = node.json("mirror", ref, directory, *options)["link"]
    return link


def test_a_guest_boots_with_nothing_but_a_web_server(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader, other = nodes.make(), nodes.make(), nodes.make()
    name = seeder.seed(cloop)["name"]
    directory = tmp_path / "www"
    with busybox_httpd_of(directory) as url:
        link = write(seeder, name, directory, "--url", url)
        seeder.run("daemon", "stop")
        report = tmp_path / "report.json"
        with Guest(reader, f"{url}{name}", "--report", report) as guest:
            guest.prompt()
            guest.power_off()
        assert url in json.loads(report.read_text())["sources"]
        out = tmp_path / "out.img"
        other.run("export", link, out)
        assert out.read_bytes() == cloop.with_suffix(".img").read_bytes()


def busybox_httpd_of(directory: Path) -> AbstractContextManager[str]:
    directory.mkdir()
    return busybox_httpd(directory)


def test_two_images_and_a_new_version_share_a_directory(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader = nodes.make(), nodes.make()
    directory, copy = tmp_path / "www", tmp_path / "copy.cloop"
    one = seeder.seed(cloop, "one")["name"]
    write(seeder, one, directory)
    first = files(directory)
    assert all(parse_path(path) for path in first if path != "link.txt")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in directory.rglob("*"))

    # What is there is not written again.
    times = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    write(seeder, one, directory)
    assert times == {path: path.stat().st_mtime_ns for path in times}

    # Another name of the same content adds names, no content.
    two = seeder.seed(cloop, "two")["name"]
    assert seeder.json("mirror", two, directory)["written"] == 0
    added = set(files(directory)) - set(first)
    assert {path.partition("/")[0] for path in added} == {two.partition("/")[0], "manifests"}
    names = [str(parse_link(line).name) for line in (directory / "link.txt").read_text().split()]
    assert names == [one, two]

    # A new version replaces the record and the line, and leaves the rest.
    copy.write_bytes(b"x" * 4096 * 50)
    seeder.seed(copy, "one", "--as-new-version")
    write(seeder, one, directory)
    now = files(directory)
    assert open_record(now[one]).record.version == 2
    changed = {path for path in first if now[path] != first[path]}
    assert changed == {one, "link.txt"}
    assert not [path for path in now if ".new-" in path]

    # The old version is still to be had there, by its number.
    out = tmp_path / "old.img"
    reader.run("export", f"{directory}/{one}", out, "--at", "1")
    assert out.read_bytes() == cloop.with_suffix(".img").read_bytes()


def test_a_mirror_stays_known_by_its_url(nodes: Nodes, tmp_path: Path) -> None:
    seeder = nodes.make()
    directory, image = tmp_path / "www", tmp_path / "image.img"
    for version, urls, options in (
        (1, [], []),
        (2, ["http://a.example/m/"], ["--url", "http://a.example/m"]),
        (3, ["http://a.example/m/"], []),
        (4, ["http://b.example/"], ["--url", "http://b.example/"]),
        (5, ["http://b.example/"], []),
    ):
        image.write_bytes(bytes([version]) * 8192)
        name = seeder.seed(image)["name"]
        link = parse_link(write(seeder, name, directory, *options))
        assert (directory / "link.txt").read_text() == f"{link}\n"
        own = parse_link(seeder.json("info", name)["link"]).mirrors
        assert link.mirrors == (*urls, *own)
        assert link.web_seeds == tuple(f"{url}data/" for url in urls)


def test_who_reads_meanwhile_sees_whole_files(nodes: Nodes, tmp_path: Path) -> None:
    seeder = nodes.make()
    directory, image = tmp_path / "www", tmp_path / "image.img"
    ended = threading.Event()
    versions: set[int] = set()
    seen: dict[str, set[bytes]] = {}

    def watch() -> None:
        while not ended.is_set():
            for path in directory.rglob("[!.]*"):  # a file being made is hidden, and goes
                if path.is_file():
                    name, data = str(path.relative_to(directory)), path.read_bytes()
                    if name.startswith("@"):
                        versions.add(open_record(data).record.version)
                    elif name != "link.txt":
                        seen.setdefault(name, set()).add(hashlib.sha256(data).digest())

    watcher = threading.Thread(target=watch)
    directory.mkdir()
    watcher.start()
    try:
        for version in range(3):
            image.write_bytes(os.urandom(1 << 20) + bytes([version]) * 4096)
            write(seeder, seeder.seed(image)["name"], directory)
    finally:
        ended.set()
        watcher.join()
    assert versions <= {1, 2, 3}
    assert seen
    for name, digests in seen.items():
        assert digests == {hashlib.sha256((directory / name).read_bytes()).digest()}, name
    assert open_record(next(directory.glob("@*/*")).read_bytes()).record.version == 3


def test_a_mirror_never_goes_back(nodes: Nodes, tmp_path: Path) -> None:
    seeder, late = nodes.make(), nodes.make()
    directory, image = tmp_path / "www", tmp_path / "image.img"
    image.write_bytes(os.urandom(1 << 16))
    seeded = seeder.seed(image)
    write(late, seeded["link"], tmp_path / "old")
    image.write_bytes(os.urandom(1 << 16))
    seeder.seed(image)
    write(seeder, seeded["name"], directory)
    before = files(directory)
    record = before[seeded["name"]]
    (tmp_path / "old" / seeded["name"]).parent.mkdir(exist_ok=True)
    (tmp_path / "old" / seeded["name"]).write_bytes(record)
    # The older version is known to `late` without a record: nothing of the name changes there.
    said = late.run("mirror", seeded["name"], directory).err
    assert "no signed record" in said
    assert files(directory)[seeded["name"]] == record


def test_wrong_bytes_of_a_mirror_are_noticed_and_healed(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader = nodes.make(), nodes.make()
    name = seeder.seed(cloop)["name"]
    directory = tmp_path / "www"
    write(seeder, name, directory)
    with misbehaving(directory) as liar, nginx(directory) as honest:
        seeder.run("daemon", "stop")
        link = parse_link((directory / "link.txt").read_text().strip())
        assert reader.run("info", str(replace(link, peers=(), mirrors=(liar.url,)))).out
        liar.fault = Fault.WRONG_BYTES
        both = replace(
            link,
            peers=(),
            mirrors=(liar.url, honest.url),
            web_seeds=(f"{liar.url}data/", f"{honest.url}data/"),
        )
        out = tmp_path / "out.img"
        reader.run("export", str(both), out)
    assert out.read_bytes() == cloop.with_suffix(".img").read_bytes()
    assert any(wanted for _, _, wanted in liar.requests)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (Fault.NOT_FOUND, NotHereError, "was not found"),
        (Fault.HTML, NotHereError, "record"),
        (Fault.SERVER_ERROR, NotHereError, "status 500"),
        (Fault.REDIRECT, NotHereError, "redirects to"),
    ],
)
def test_a_url_that_is_no_mirror_is_one_clear_line(
    nodes: Nodes, tmp_path: Path, fault: Fault, error: type[P2pcloopError], says: str
) -> None:
    seeder, reader = nodes.make(), nodes.make()
    image = tmp_path / "image.img"
    image.write_bytes(os.urandom(1 << 16))
    name = seeder.seed(image)["name"]
    with misbehaving(tmp_path, fault) as web:
        said = reader.run("fetch", f"{web.url}{name}", code=error.exit_code).err
    lines = [line for line in said.splitlines() if line.startswith("p2pcloop:")]
    assert len(lines) == 1
    assert web.url in lines[0]
    assert says in lines[0]
    assert reader.torrents() == {}


def test_what_cannot_be_mirrored(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    node = nodes.make()
    assert "is a file" in node.run("mirror", cloop, tmp_path / "m", code=UsageError.exit_code).err
    name = node.seed(cloop)["name"]
    taken = tmp_path / "file"
    taken.touch()
    node.run("mirror", name, taken, code=UsageError.exit_code)
    for url in ("ftp://x/", "http://x/?a", "nonsense"):
        said = node.run("mirror", name, tmp_path / "m", "--url", url, code=UsageError.exit_code)
        assert len([line for line in said.err.splitlines() if line.startswith("p2pcloop:")]) == 1
    assert not (tmp_path / "m").exists()


def test_a_damaged_mirror_is_told(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    node = nodes.make()
    name = node.seed(cloop)["name"]
    directory = tmp_path / "m"
    write(node, name, directory)
    (directory / name).write_bytes(b"\x80")
    node.run("mirror", name, directory, code=FormatError.exit_code)
