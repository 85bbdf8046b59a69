"""What `p2pcloop export` writes, read by cloop-utils and qemu; what they write, read by us."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import make_image, padded

pytestmark = pytest.mark.interop

RAW = make_image(2_000_000, seed=2)


def run(*command: str | Path) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def export(tmp_path: Path) -> Iterator[list[str]]:
    """The start of an export command in a process of its own."""
    del tmp_path
    home = tempfile.mkdtemp(prefix="p2pcloop-")
    code = "from p2pcloop.cli.main import main; main()"
    yield [sys.executable, "-c", code, "export", "--home", home]
    shutil.rmtree(home)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW)
    return path


def test_our_cloop_in_their_tools(export: list[str], raw: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.cloop"
    run(*export, raw, ours)
    run("qemu-img", "compare", "-f", "cloop", "-F", "raw", ours, raw)
    assert run("extract_compressed_fs", ours, "-") == padded(RAW, 65536)


@pytest.mark.parametrize("options", ["-B 65536", "-B 4096 -L 1", "-B 1M -L 9"])
def test_their_cloop_through_us_and_back(
    export: list[str], raw: Path, tmp_path: Path, options: str
) -> None:
    theirs = tmp_path / "theirs.cloop"
    run("create_compressed_fs", "-q", *options.split(), raw, theirs)
    run(*export, theirs, tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes().rstrip(b"\0") == RAW.rstrip(b"\0")
    run("qemu-img", "compare", "-f", "cloop", "-F", "raw", theirs, tmp_path / "out.img")
    run(*export, theirs, tmp_path / "again.cloop")
    run("qemu-img", "compare", "-f", "cloop", "-F", "cloop", theirs, tmp_path / "again.cloop")
