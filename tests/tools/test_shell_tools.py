"""The shell programs of tools/: syntax, options, and an image built for real."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted(
    path
    for folder in (".ci", "tools", "examples")
    for path in (CHECKOUT / folder).rglob("*")
    if path.is_file() and re.match(rb"#!/bin/(ba)?sh\n", path.read_bytes())
)


def build_image(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECKOUT / "tools/build-image", *args],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_scripts_are_found() -> None:
    names = {str(path.relative_to(CHECKOUT)) for path in SCRIPTS}
    assert names >= {
        ".ci/run", "tools/bench", "tools/build-image", "tools/check", "tools/customise-debian",
        "tools/customise-knoppix", "tools/get-uml-kernel", "tools/hello-deb", "tools/quickstart",
        "tools/setup",
    }  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_and_parses(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    done = subprocess.run(
        ["bash", "-n", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_package_has_its_reason_and_stands_once() -> None:
    lines = (CHECKOUT / "tools/debian-packages.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+: \S.*", line) for line in packages)
    names = [line.partition(":")[0] for line in packages]
    assert len(set(names)) == len(names)


def test_help_names_every_option() -> None:
    done = build_image("--help")
    assert done.returncode == 0
    for option in ("--tiny", "--knoppix", "--force", "--size", "--suite", "--mirror", "--out"):
        assert f"\n  {option} " in done.stdout


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
        ["qemu-img", "compare", "-f", "cloop", "-F", "raw", cloop, image], check=True, timeout=60
    )
    subprocess.run(["e2fsck", "-fn", image], check=True, timeout=60)
    package = tmp_path / "hello.deb"
    subprocess.run(["debugfs", "-R", f"dump /root/hello.deb {package}", image], check=True)
    subprocess.run(["dpkg-deb", "--contents", package], check=True, timeout=60)
    package.unlink()
    built = cloop.stat()

    second = build_image("--tiny", "--out", str(tmp_path))
    assert second.stdout == first.stdout
    assert cloop.stat().st_ino == built.st_ino
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.cloop", "tiny.img", "tiny.log"]


@pytest.mark.interop
def test_a_tiny_knoppix_is_a_cd_with_a_cloop_of_its_root(tmp_path: Path) -> None:
    done = build_image("--knoppix", "--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\b\d/\d\b", done.stderr) == ["1/4", "2/4", "3/4", "4/4"]
    cd, root = Path(done.stdout.rstrip("\n")), tmp_path / "tiny-knoppix.img"
    assert cd == tmp_path / "tiny-knoppix.iso"
    listing = subprocess.run(
        ["isoinfo", "-R", "-f", "-i", cd], check=True, capture_output=True, text=True, timeout=60
    )
    assert {"/KNOPPIX/KNOPPIX", "/boot/isolinux/isolinux.bin"} <= set(listing.stdout.split())
    cloop = subprocess.run(
        ["isoinfo", "-R", "-x", "/KNOPPIX/KNOPPIX", "-i", cd],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (tmp_path / "cloop").write_bytes(cloop.stdout)
    subprocess.run(
        ["extract_compressed_fs", tmp_path / "cloop", tmp_path / "out"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / "out").read_bytes().rstrip(b"\0") == root.read_bytes().rstrip(b"\0")
