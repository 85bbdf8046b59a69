"""The shell programs of tools/: syntax, options, and an image built for real."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import read_until, started
from tests.support.waiting import BOUND

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = [
    CHECKOUT / name
    for name in subprocess.run(
        [CHECKOUT / "tools/check", "--scripts"],
        capture_output=True, text=True, timeout=BOUND, check=True,
    ).stdout.splitlines()
]  # fmt: skip
"""Those that tools/check gives to shellcheck."""


def build_image(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECKOUT / "tools/build-image", *args],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_no_script_is_missed() -> None:
    tops = [".ci", "daemon", "docs", "examples", "findings", "p2pcloop", "tests", "tools"]
    files = [path for top in tops for path in (CHECKOUT / top).rglob("*") if path.is_file()]
    assert {path for path in files if path.suffix == ".sh"} <= set(SCRIPTS)
    cloops = CHECKOUT / "tests/data"
    began = [path for path in files if cloops not in path.parents and starts_itself(path)]
    assert len(began) > 15
    others = {path for path in began if path not in SCRIPTS}
    assert all(b"python" in path.read_bytes().partition(b"\n")[0] for path in others)


def starts_itself(path: Path) -> bool:
    """Whether a file begins as a script that can be run."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def test_the_scripts_have_no_warning() -> None:
    done = subprocess.run(
        ["shellcheck", *SCRIPTS], capture_output=True, text=True, timeout=120, check=False,
        cwd=CHECKOUT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_if_it_says_how_it_is_run(script: Path) -> None:
    if script.name != "init.sh":  # the initramfs makes it executable, as /init
        assert bool(script.stat().st_mode & 0o111) == starts_itself(script)


def test_every_package_has_its_reason_and_stands_once() -> None:
    lines = (CHECKOUT / "tools/debian-packages.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+: \S.*", line) for line in packages)
    names = [line.partition(":")[0] for line in packages]
    assert len(set(names)) == len(names)


def test_setup_installs_each_part_of_the_list() -> None:
    listed = re.findall(
        r"^# to (.*)", (CHECKOUT / "tools/debian-packages.txt").read_text(), re.MULTILINE
    )
    every, users = re.findall(r"sections='(.*?)'", (CHECKOUT / "tools/setup").read_text())
    assert all(part.startswith(tuple(every.split("|"))) for part in listed)
    assert users.split("|") == [part for part in listed if part in users]


def test_help_names_every_option() -> None:
    done = build_image("--help")
    assert done.returncode == 0
    options = (
        "--tiny",
        "--knoppix",
        "--desktop",
        "--force",
        "--size",
        "--suite",
        "--mirror",
        "--out",
    )
    assert all(f"\n  {option} " in done.stdout for option in options)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size"], "--size needs a value"),
        (["--size", "600M"], "--size takes MiB"),
        (["--size", "10"], "--size takes MiB"),
        (["--suite", "x; true"], "--suite takes a release's code name"),
        (["--suite", "-x"], "--suite takes a release's code name"),
        (["--cloop-format", "3", "--knoppix"], "--cloop-format takes 2 or 4"),
        (["--cloop-format", "4"], "--cloop-format goes with --knoppix"),
        (["--desktop", "--tiny"], "--desktop goes with neither --tiny nor --knoppix"),
        (["--desktop", "light", "--knoppix"], "--desktop goes with neither"),
        (["--desktop", "heavy"], "unknown argument heavy"),
        (["--loud"], "unknown argument --loud"),
        (["image"], "unknown argument image"),
    ],
)
def test_what_makes_no_sense_is_refused(args: list[str], message: str) -> None:
    done = build_image(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.interop
def test_a_tiny_image_is_built_once_and_its_cloop_holds_it(tmp_path: Path) -> None:
    first = build_image("--tiny", "--out", str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert re.findall(r"\b\d/\d\b", first.stderr) == ["1/2", "2/2"]
    cloop = Path(first.stdout.rstrip("\n"))
    assert cloop == tmp_path / "tiny.cloop"
    image = tmp_path / "tiny.img"
    subprocess.run(
        ["qemu-img", "compare", "-f", "cloop", "-F", "raw", cloop, image], check=True, timeout=120
    )
    subprocess.run(["e2fsck", "-fn", image], check=True, timeout=120)
    package = tmp_path / "hello.deb"
    subprocess.run(["debugfs", "-R", f"dump /root/hello.deb {package}", image], check=True)
    subprocess.run(["dpkg-deb", "--contents", package], check=True, timeout=120)
    package.unlink()
    built = cloop.stat()

    second = build_image("--tiny", "--out", str(tmp_path))
    assert second.stdout == first.stdout
    assert cloop.stat().st_ino == built.st_ino
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.cloop", "tiny.img", "tiny.log"]


def test_what_another_call_builds_is_waited_for(tmp_path: Path) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = (CHECKOUT / "tools/build-image", "--tiny", "--out", tmp_path)
    with started(command) as build:
        assert str(tmp_path) in read_until(build, "waiting for another build-image")
        (tmp_path / "tiny.cloop").touch()
        os.close(lock)
        assert build.communicate(timeout=120)[0] == f"{tmp_path}/tiny.cloop\n"


def test_what_is_here_waits_for_no_other(tmp_path: Path) -> None:
    (tmp_path / "tiny.cloop").touch()
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        done = build_image("--tiny", "--out", str(tmp_path))
    finally:
        os.close(lock)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/tiny.cloop\n"), done.stderr


@pytest.mark.interop
def test_a_tiny_knoppix_is_a_cd_with_a_cloop_of_its_root(tmp_path: Path) -> None:
    done = build_image("--knoppix", "--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\b\d/\d\b", done.stderr) == ["1/4", "2/4", "3/4", "4/4"]
    cd, root = Path(done.stdout.rstrip("\n")), tmp_path / "tiny-knoppix.img"
    assert cd == tmp_path / "tiny-knoppix.iso"
    listing = subprocess.run(
        ["isoinfo", "-R", "-f", "-i", cd], check=True, capture_output=True, text=True, timeout=120
    )
    assert {"/KNOPPIX/KNOPPIX", "/boot/isolinux/isolinux.bin"} <= set(listing.stdout.split())
    cloop = subprocess.run(
        ["isoinfo", "-R", "-x", "/KNOPPIX/KNOPPIX", "-i", cd],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (tmp_path / "cloop").write_bytes(cloop.stdout)
    subprocess.run(
        ["extract_compressed_fs", tmp_path / "cloop", tmp_path / "out"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "out").read_bytes().rstrip(b"\0") == root.read_bytes().rstrip(b"\0")
