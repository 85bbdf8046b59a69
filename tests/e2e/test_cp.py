"""Files into guests that run, and out of them."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import BusyError, MismatchError, NotHereError, StorageError, UsageError
from tests.support.programs import EXEC, GUEST_OPTIONS, Node, Nodes
from tests.support.waiting import BOUND

pytestmark = pytest.mark.e2e

NOISE = random.Random(3).randbytes(2 << 20)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


@pytest.fixture(scope="module")
def guest(node: Node, cloop: Path) -> str:
    """A guest that has booted: on a busy machine the first command would tell that it waits."""
    name = node.run("boot", cloop, "--detach", *GUEST_OPTIONS).out.strip()
    node.run(*EXEC, name, "--", "true")
    return name


def test_a_file_goes_in_and_comes_out(node: Node, guest: str, tmp_path: Path) -> None:
    file = tmp_path / "with space\nand a line"
    file.write_bytes(NOISE)
    file.chmod(0o750)
    node.run("cp", file, f"{guest}:/root/")
    seen = node.run("exec", guest, "--", "stat", "-c", "%a %u %s", f"/root/{file.name}").out
    assert seen == f"750 0 {len(NOISE)}\n"
    back = tmp_path / "back"
    back.mkdir()
    node.run("cp", f"{guest}:/root/{file.name}", back)
    assert (back / file.name).read_bytes() == NOISE
    assert (back / file.name).stat().st_mode & 0o777 == 0o750
    # A file that is there gets the content, and stays the file that it was.
    there = tmp_path / "there"
    there.write_bytes(b"long" * len(NOISE))
    there.chmod(0o600)
    number = there.stat().st_ino
    node.run("cp", f"{guest}:root/{file.name}", there)  # paths begin at the root
    assert (there.read_bytes(), there.stat().st_ino) == (NOISE, number)
    assert there.stat().st_mode & 0o777 == 0o600
    node.run("cp", f"{guest}:/proc/version", tmp_path / "version")  # a file of unknown size
    assert (tmp_path / "version").read_text().startswith("Linux")


def test_a_directory_goes_in_and_comes_out(node: Node, guest: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a b").mkdir(parents=True)
    (tree / "a b" / ("n" * 200)).write_bytes(NOISE[:1000])
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "secret").write_text("x")
    (tree / "secret").chmod(0o400)
    node.run("cp", tree, f"{guest}:/root/t")  # which is not there: it becomes the copy
    node.run("cp", tree, f"{guest}:/root/t")  # now it is: it gets the copy
    node.run("cp", f"{tree}/.", f"{guest}:/root/t/tree")  # into it
    names = node.run("exec", guest, "--", "sh", "-c", "cd /root/t; ls; ls tree").out.split("\n")
    assert names == ["a b", "link", "secret", "tree", "a b", "link", "secret", ""]
    node.run("cp", f"{guest}:/root/t/tree", tmp_path / "back")
    same = [path.relative_to(tree) for path in sorted(tree.rglob("*"))]
    back = tmp_path / "back"
    assert [path.relative_to(back) for path in sorted(back.rglob("*"))] == same
    assert (back / "a b" / ("n" * 200)).read_bytes() == NOISE[:1000]
    assert (back / "link").readlink() == Path("/etc/passwd")
    assert (back / "secret").stat().st_mode & 0o777 == 0o400
    # A directory that is there keeps its permissions; one that is new gets those of the source.
    tree.chmod(0o711)
    (tmp_path / "name").symlink_to(tree)
    node.run("exec", guest, "--", "mkdir", "-m", "1777", "/root/open")
    node.run("cp", tmp_path / "name", f"{guest}:/root/")
    node.run("exec", guest, "--", "mkdir", "-m", "2770", "/root/open/a b")
    (tree / "new").mkdir(mode=0o750)
    node.run("cp", f"{tree}/.", f"{guest}:/root/open")
    directories = ("/root/open", "/root/name", "/root/open/a b", "/root/open/new")
    seen = node.run("exec", guest, "--", "stat", "-c", "%a", *directories).out
    assert seen == "1777\n711\n2770\n750\n"
    node.run("cp", f"{guest}:/root/t/.", tmp_path)
    assert (tmp_path / "secret").read_text() == "x"


def test_a_file_from_the_standard_input_and_to_the_standard_output(node: Node, guest: str) -> None:
    with node.started("cp", "-", f"{guest}:/root/typed", stdin=subprocess.PIPE) as copying:
        assert copying.communicate("typed\n" * 50_000, timeout=BOUND) == ("", "")
        assert copying.returncode == 0
    assert node.run("cp", f"{guest}:/root/typed", "-").out == "typed\n" * 50_000
    seen = node.run("exec", guest, "--", "stat", "-c", "%a %s", "/root/typed").out
    assert seen == "644 300000\n"
    said = node.run("cp", f"{guest}:/etc", "-", code=MismatchError.exit_code).err
    assert "/etc is a directory" in said
    said = node.run("cp", "-", f"{guest}:/root", code=MismatchError.exit_code).err
    assert "/root is a directory" in said
    node.run("cp", "-", "-", code=UsageError.exit_code)


def test_what_cannot_be_copied_is_told_and_changes_nothing(
    node: Node, guest: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "tree").mkdir()
    not_here, mismatch = NotHereError.exit_code, MismatchError.exit_code
    for source, target, code, said in (
        (f"{guest}:/no/such", tmp_path, not_here, "there is no /no/such"),
        (f"{guest}:/etc/passwd", tmp_path / "new/", not_here, "new"),
        (f"{guest}:/dev/null", tmp_path, mismatch, "neither a file nor a directory"),
        (f"{guest}:/etc", tmp_path / "file", mismatch, "no directory"),
        (tmp_path / "no", f"{guest}:/root/", not_here, "No such file"),
        (tmp_path / "file", f"{guest}:/no/such/file", not_here, "no directory /no/such"),
        (tmp_path / "file", f"{guest}:/root/new/", not_here, "no directory /root/new/"),
        (tmp_path / "tree", f"{guest}:/etc/passwd", mismatch, "/etc/passwd"),
        (tmp_path / "file", tmp_path / "other", UsageError.exit_code, "NAME:PATH"),
        (f"{guest}:/a", f"{guest}:/b", UsageError.exit_code, "./NAME"),
        ("none:/a", tmp_path, not_here, "there is no guest none"),
        (f"{guest}:/bin/busybox", "/dev/full", StorageError.exit_code, "cannot write /dev/full"),
    ):
        slash = "/" if "new" in str(target) and not str(target).endswith("/") else ""
        assert said in node.run("cp", source, f"{target}{slash}", code=code).err
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tree"]


def test_a_full_disk_is_told(node: Node, guest: str, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(64 << 20)
    node.run("exec", guest, "--", "mkdir", "/full")
    node.run("exec", guest, "--", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/full")
    said = node.run("cp", huge, f"{guest}:/full", code=StorageError.exit_code).err
    assert "No space left on device" in said
    (tmp_path / "tree").mkdir()
    huge.rename(tmp_path / "tree/huge")
    said = node.run("cp", tmp_path / "tree", f"{guest}:/full", code=StorageError.exit_code).err
    assert "No space left on device" in said


@pytest.mark.parametrize("mode", ["block", "files"])
def test_an_overlay_is_read_and_written_while_no_guest_uses_it(
    node: Node, cloop: Path, tmp_path: Path, mode: str
) -> None:
    overlay = tmp_path / "mine.delta"
    options = ("--overlay", overlay, "--overlay-mode", mode)
    node.run("run", cloop, *options, "--", "sh", "-c", "echo note >/root/note")
    base = ("--base", cloop)
    node.run("cp", *base, f"{overlay}:/root/note", tmp_path)
    assert (tmp_path / "note").read_text() == "note\n"
    node.run("cp", *base, f"{overlay}:/etc", tmp_path / "etc")  # of the image below it
    assert (tmp_path / "etc/passwd").read_text().startswith("root:")
    node.run("cp", *base, tmp_path / "etc", f"{overlay}:/root/")
    done = node.run("run", cloop, *options, "--", "cat", "/root/etc/passwd", "/root/note")
    assert done.out == (tmp_path / "etc/passwd").read_text() + "note\n"
    said = node.run("cp", *base, f"{overlay}:/no/such", tmp_path, code=NotHereError.exit_code).err
    assert "there is no /no/such" in said
    node.run("cp", f"{overlay}:/root/note", tmp_path, code=NotHereError.exit_code)  # no --base
    guest = node.run("boot", cloop, *GUEST_OPTIONS, *options, "--detach").out.strip()
    said = node.run("cp", *base, f"{overlay}:/root/note", ".", code=BusyError.exit_code).err
    assert f"name the guest instead of the overlay: {guest}:PATH" in said
    node.run("cp", f"{guest}:/root/note", tmp_path / "again")
    assert (tmp_path / "again").read_text() == "note\n"
    node.run("stop", guest, "--time", "0")


def test_reading_a_block_overlay_changes_nothing_of_it(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    link = node.json("seed", cloop, "--name", "tiny")["link"]
    overlay = tmp_path / "mine.delta"
    node.run("run", link, "--overlay", overlay, "--", "sh", "-c", "echo note >/root/note")
    before = overlay.read_bytes()
    node.run("cp", f"{overlay}:/root/note", tmp_path)  # it names its image
    assert (tmp_path / "note").read_text() == "note\n"
    assert overlay.read_bytes() == before
