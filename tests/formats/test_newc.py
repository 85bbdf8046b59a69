"""cpio newc archives: exact bytes, and what others read from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from p2pcloop.formats import newc
from p2pcloopd.programs import find_program
from tests.support.waiting import BOUND

GOLDEN = (
    b"07070100000001000081a40000000000000000000000010000000000000003"
    b"000000000000000000000000000000000000000200000000a\0"
    b"xyz\0"
    b"07070100000000000000000000000000000000000000010000000000000000"
    b"000000000000000000000000000000000000000b00000000TRAILER!!!\0\0\0\0"
)  # fmt: skip


def test_golden() -> None:
    assert newc.build_archive([newc.regular_file("a", b"xyz")]) == GOLDEN


@pytest.mark.interop
def test_busybox_unpacks_it(tmp_path: Path) -> None:
    contents = {f"dir/f{size}": bytes(range(size)) for size in (0, 1, 2, 3, 4, 5, 255)}
    archive = newc.build_archive(
        [
            newc.directory("dir", 0o750),
            *(newc.regular_file(name, data, 0o640) for name, data in contents.items()),
            newc.symlink("dir/link", "f255"),
        ]
    )
    busybox = find_program("busybox", "busybox-static")
    subprocess.run([busybox, "cpio", "-i"], input=archive, cwd=tmp_path, check=True, timeout=BOUND)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert (tmp_path / "dir/link").readlink() == Path("f255")
    assert (tmp_path / "dir").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "dir/f3").stat().st_mode & 0o777 == 0o640


@pytest.mark.interop
def test_busybox_lists_a_device(tmp_path: Path) -> None:
    archive = newc.build_archive(
        [newc.directory("dev"), newc.char_device("dev/console", 5, 1, 0o600)]
    )
    busybox = find_program("busybox", "busybox-static")
    listing = subprocess.run(
        [busybox, "cpio", "-tv"],
        input=archive, cwd=tmp_path, check=True, timeout=BOUND, capture_output=True,
    )  # fmt: skip
    assert b"crw-------" in listing.stdout
    assert b"dev/console" in listing.stdout


@pytest.mark.parametrize("name", ["", "/etc", "a\0b", "TRAILER!!!"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        newc.build_archive([newc.regular_file(name, b"")])
