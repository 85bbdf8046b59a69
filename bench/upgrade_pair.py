"""An image and its next version: the demo image before and after a guest installed packages.

The guest is p2pcloop's own with one difference: a second disk, an ext4 image of the packages,
replaces the network. It leaves behind everything that a user's guest leaves behind: a journal,
logs, the caches of apt after `apt-get clean`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.guests import LIMIT, PROMPT, boot_initramfs, disk_arguments, guest
from bench.harness import Bench, BenchError
from bench.processes import Argument, fresh_copy, node, run, run_json, server

PACKAGES = ("git", "python3", "ruby", "vim")
"""Some 30 MB of packages with their dependencies: a workplace for a programmer."""

PROGRAMS = "git --version && python3 -V && ruby -v && vim --version | head -n 1"
"""Runs all four, as a reader of the new version would do first."""

_APT = "DEBIAN_FRONTEND=noninteractive apt-get -o APT::Install-Recommends=false"
_INSTALL = " && ".join(
    [
        "mount -o ro /dev/ubda /mnt",
        "cp /mnt/*.deb /var/cache/apt/archives/",
        f"{_APT} install -qq /var/cache/apt/archives/*.deb </dev/null >/dev/null",
        "apt-get clean",
        "umount /mnt",
        PROGRAMS,
        "sync",
    ]
)
_INSTALL_LIMIT = 900.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions of an image.

    Attributes:
        cloop: the old version as it was seeded.
        overlay: the guest's writes, over the old version.
        old: the old version as a raw image.
        new: the new version as a raw image: old and overlay.
        packages: the installed ones: file name and bytes.
    """

    cloop: Path
    overlay: Path
    old: Path
    new: Path
    packages: dict[str, int]


def upgrade_pair(bench: Bench, place: Path) -> Pair:
    """Make the pair in the directory `place`, or take one that was made there of the same image.

    Raises:
        BenchError: a program failed.
    """
    stat = bench.image.stat()
    initramfs = hashlib.sha256(boot_initramfs(bench).read_bytes()).hexdigest()
    made_of = [stat.st_size, stat.st_mtime_ns, initramfs, *PACKAGES]
    stamp = place / "made-of.json"
    if not stamp.exists() or json.loads(stamp.read_text())["made_of"] != made_of:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        told = {"made_of": made_of, "packages": _make(bench, place)}
        stamp.write_text(json.dumps(told, indent=1))
    told = json.loads(stamp.read_text())
    return Pair(
        cloop=place / "base.cloop",
        overlay=place / "mine.delta",
        old=bench.image,
        new=place / "new.img",
        packages=told["packages"],
    )


def _make(bench: Bench, place: Path) -> dict[str, int]:
    packages = _download(bench.image, place / "packages")
    disk = place / "packages.img"
    run(["mke2fs", "-q", "-t", "ext4", "-d", place / "packages", disk, "64M"])
    cloop, overlay = place / "base.cloop", place / "mine.delta"
    fresh_copy(bench.cloop, cloop)
    with node(bench, bench.work / "maker") as home:
        seed: list[Argument] = [bench.p2pcloop, "seed", cloop, "--name", "base", "--home", home]
        name = str(run_json([*seed, "--json"])["name"])
        _install(bench, name, home, overlay, disk)
        export: list[Argument] = [bench.p2pcloop, "export", name, place / "new.img"]
        run([*export, "--overlay", overlay, "--home", home])
    run(["e2fsck", "-fn", place / "new.img"])
    return packages


def _download(image: Path, place: Path) -> dict[str, int]:
    """Download the packages that this machine's apt would install in the image, by its own list."""
    place.mkdir()
    with tempfile.TemporaryDirectory(prefix="p2pcloop-apt-") as scratch:
        status = Path(scratch) / "status"
        run(["debugfs", "-R", f"dump /var/lib/dpkg/status {status}", image])
        if not status.exists():
            raise BenchError(f"{image} has no /var/lib/dpkg/status")
        options = {
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
            "Dir::Cache": scratch,
            "Dir::Cache::archives": str(place),
            "Dir::State::status": str(status),
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        run(["apt-get", "install", "-qq", "--download-only", *words, *PACKAGES])
    shutil.rmtree(place / "partial", ignore_errors=True)
    (place / "lock").unlink(missing_ok=True)
    return {path.name: path.stat().st_size for path in sorted(place.glob("*.deb"))}


def _install(bench: Bench, name: str, home: Path, overlay: Path, packages: Path) -> None:
    socket, log = bench.work / "disk.sock", bench.work / "install.log"
    serve: list[Argument] = [bench.p2pcloop, "block", name, "--home", home, "--overlay", overlay]
    arguments = [*disk_arguments(socket, boot_initramfs(bench)), f"ubd0r={packages}"]
    with (
        server([*serve, "--vhost-user", socket], socket, bench.work / "block.log"),
        guest(bench, arguments, log) as console,
    ):
        console.expect(PROMPT, LIMIT)
        console.run(_INSTALL, _INSTALL_LIMIT)
        console.send_line("poweroff")
        console.wait(LIMIT)
