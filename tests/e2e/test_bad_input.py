"""What a user may do wrong: the commands say what was wrong, in one line, and change nothing."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.errors import (
    BusyError,
    FormatError,
    GuestError,
    MismatchError,
    NeedsPackageError,
    NotHereError,
    P2pcloopError,
    StorageError,
    UsageError,
)
from p2pcloop.formats.link import parse_link
from tests.support.programs import Guest, Node, Nodes, read_until

pytestmark = pytest.mark.e2e

PROGRAMS = (
    *("linux.uml", "busybox", "bwrap", "cc", "ldd"),
    *("mount", "prlimit", "setpriv", "unshare"),
)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One node for all: none of these commands leaves anything behind."""
    with Nodes() as nodes:
        yield nodes.make()


def refused(node: Node, *words: str | Path, error: type[P2pcloopError], says: str) -> None:
    """Run a command that must fail in the way of `error`, in a line or two."""
    done = node.run(*words, code=error.exit_code)
    said = [line for line in done.err.splitlines() if not line.startswith("starting p2pcloopd")]
    assert done.out == ""
    assert 1 <= len(said) <= 2, done.err
    assert said[0].startswith("p2pcloop: "), said
    assert says in " ".join(said)


def test_an_empty_image(node: Node, tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.touch()
    for words in (("seed", empty, "--name", "x"), ("boot", empty), ("info", empty)):
        refused(node, *words, error=UsageError, says="is empty")


@pytest.mark.parametrize("size", [1, 1000, 512 * 1001, 4096 * 100 + 1])
def test_an_odd_size_is_kept(node: Node, tmp_path: Path, size: int) -> None:
    image, out = tmp_path / "odd.img", tmp_path / "out.img"
    data = b"\0" + random.Random(size).randbytes(size - 1)
    image.write_bytes(data)
    seeded = node.json("seed", image, "--raw", "--name", f"odd-{size}")
    assert seeded["size"] == size
    for ref in (seeded["name"], str(image)):
        assert node.json("info", ref)["size"] == size
        node.run("export", ref, out, "--force")
        assert out.read_bytes() == data


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_truncated_cloop(node: Node, cloop: Path, tmp_path: Path, part: float) -> None:
    cut = tmp_path / "cut.cloop"
    data = cloop.read_bytes()
    cut.write_bytes(data[: int(part * len(data))])
    for words in (("seed", cut, "--name", "x"), ("boot", cut), ("info", cut), ("verify", cut)):
        refused(node, *words, error=FormatError, says="cloop")


def test_a_damaged_cloop_is_not_published(node: Node, cloop: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.cloop"
    data = bytearray(cloop.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    refused(node, "seed", damaged, "--name", "x", error=FormatError, says="block")
    refused(node, "boot", damaged, error=FormatError, says="block")


@pytest.mark.parametrize(
    ("ref", "error", "says"),
    [
        ("magnet:?xt=urn:btih:" + "0" * 40, UsageError, "no x.p2pcloop part"),
        ("magnet:?x.p2pcloop=nobody", UsageError, "name"),
        ("http://127.0.0.1/image.cloop", UsageError, "does not end in a name"),
        ("@nob0dy/image", UsageError, "not a key"),
        ("no-such-file.cloop", NotHereError, "no file"),
        (".", UsageError, "not a file"),
    ],
)
@pytest.mark.parametrize("command", ["boot", "info", "fetch"])
def test_a_ref_that_is_none(
    node: Node, command: str, ref: str, error: type[P2pcloopError], says: str
) -> None:
    refused(node, command, ref, error=error, says=says)


def test_names_and_links_that_lead_nowhere(nodes: Nodes, cloop: Path) -> None:
    seeder, node = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)
    refused(node, "boot", seeded["name"], error=NotHereError, says=seeded["name"])
    link = replace(parse_link(seeded["link"]), mirrors=())
    other_name = replace(link.name, label="other")
    for wrong, error in (
        (replace(link, manifest_id=bytes(32)), MismatchError),
        (replace(link, name=other_name), MismatchError),
        (replace(link, manifest_torrent=link.pack_torrent or b""), FormatError),
    ):
        refused(node, "boot", str(wrong), error=error, says="manifest")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (bytes(1 << 20), "no file system that is known"),
        (b"\xeb\x3c\x90mkfs.fat" * 100_000, "no file system that is known"),
        (bytes(4086) + b"SWAPSPACE2" + bytes(1 << 20), "a swap area"),
        (b"LUKS\xba\xbe\0\2" + bytes(1 << 20), "an encrypted device (LUKS)"),
        (bytes(512) + b"LABELONE" + bytes(1 << 20), "a physical volume of LVM"),
        (b"\xeb\x52\x90NTFS    " + bytes(1 << 20), "ntfs"),
    ],
)
def test_no_file_system_that_boots(node: Node, tmp_path: Path, content: bytes, found: str) -> None:
    image = tmp_path / "other.img"
    image.write_bytes(content)
    refused(node, "boot", image, error=GuestError, says=f"{image} cannot boot: it holds {found}")
    label = f"unbootable-{zlib.crc32(content):x}"
    seeded = node.run("seed", image, "--raw", "--name", label, "--json")
    assert f"a guest cannot boot it: it holds {found}" in seeded.err
    name = json.loads(seeded.out)["name"]
    refused(node, "boot", name, error=GuestError, says=f"{name} cannot boot: it holds {found}")


@pytest.mark.parametrize("option", ["--report", "--console"])
def test_output_that_cannot_be_written_is_refused_before_the_boot(
    node: Node, cloop: Path, tmp_path: Path, option: str
) -> None:
    folder = tmp_path / "none"
    boot = ("boot", cloop, option)
    refused(node, *boot, folder / "file", error=StorageError, says=f"hint: make {folder} first")
    refused(node, *boot, tmp_path, error=UsageError, says="is a folder")


def test_an_overlay_is_used_by_one_at_a_time(node: Node, cloop: Path, tmp_path: Path) -> None:
    overlay, socket = tmp_path / "mine.delta", node.root.parent / "nbd"
    serve = ("block", cloop, "--nbd", f"unix:{socket}", "--overlay", overlay)
    with node.started(*serve) as serving:
        said = read_until(serving, "serving at")
        assert said.endswith(f", writes go to {overlay}; Ctrl-C ends it\n")
        refused(node, "boot", cloop, "--overlay", overlay, error=BusyError, says=str(overlay))
        other = f"unix:{socket}-2"
        second = ("block", cloop, "--nbd", other, "--overlay", overlay)
        refused(node, *second, error=BusyError, says=str(overlay))
        assert serving.poll() is None


def test_an_overlay_of_another_image(node: Node, cloop: Path, tmp_path: Path) -> None:
    overlay, other = tmp_path / "mine.delta", tmp_path / "other.img"
    with Guest(node, cloop, "--overlay", overlay) as guest:
        guest.prompt()
        guest.sh("echo mine > /root/mine")
        guest.power_off()
    before = overlay.read_bytes()
    other.write_bytes(bytes(32 << 20))
    out = tmp_path / "out.img"
    for words in (("boot",), ("export", out), ("block", "--nbd", f"unix:{tmp_path}/s")):
        command, *rest = words
        asked = (command, other, *rest, "--overlay", overlay)
        refused(node, *asked, error=MismatchError, says=str(overlay))
    assert overlay.read_bytes() == before
    assert not out.exists()
    for asked in (("boot", overlay), ("seed", overlay, "--name", "x"), ("export", overlay, out)):
        refused(node, *asked, error=UsageError, says="is an overlay")


@pytest.mark.parametrize(
    ("missing", "package"),
    [("linux.uml", "user-mode-linux"), ("busybox", "busybox-static"), ("bwrap", "bubblewrap")],
)
def test_a_program_that_is_not_installed(
    node: Node, cloop: Path, tmp_path: Path, missing: str, package: str
) -> None:
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        if program != missing:
            (tmp_path / program).symlink_to(found)
    other = Node(node.root)
    other.environment = node.environment | {"PATH": str(tmp_path)}
    boot = ("boot", cloop, "--kernel", "system")
    refused(other, *boot, error=NeedsPackageError, says=f"apt-get install {package}")


def test_a_kernel_without_modules(node: Node, cloop: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "linux"
    kernel.write_text('#!/bin/sh\n[ "$1" != --version ] || echo 6.1.999\n')
    kernel.chmod(0o755)
    boot = ("boot", cloop, "--kernel")
    refused(node, *boot, kernel, error=NeedsPackageError, says="apt-get install user-mode-linux")
    (tmp_path / "text").write_text("no kernel")
    refused(node, *boot, tmp_path / "text", error=NeedsPackageError, says="cannot be run")
